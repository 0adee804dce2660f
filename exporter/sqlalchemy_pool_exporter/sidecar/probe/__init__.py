# SPDX-License-Identifier: Apache-2.0
"""What a database says of its side."""
