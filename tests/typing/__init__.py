# SPDX-License-Identifier: Apache-2.0
"""Files that only type checkers read."""
