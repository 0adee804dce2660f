# SPDX-License-Identifier: Apache-2.0
"""The documentation, and what writes the parts of it that come from the code."""
