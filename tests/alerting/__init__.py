# SPDX-License-Identifier: Apache-2.0
"""Tests of alert rules, runbooks and staged incidents."""
