# SPDX-License-Identifier: Apache-2.0
"""Tests of ``recording``: what runs in the application."""
