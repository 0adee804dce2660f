# SPDX-License-Identifier: Apache-2.0
"""Tests of the board in a terminal."""
