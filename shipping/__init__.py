# SPDX-License-Identifier: Apache-2.0
"""What is checked of that which is shipped, before it is."""
