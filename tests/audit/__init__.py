# SPDX-License-Identifier: Apache-2.0
"""Tests of ``segment``, which application and sidecar share."""
