# SPDX-License-Identifier: Apache-2.0
"""Shared by the application and the sidecar: the block of a pool, the segment file, and the directory of segments."""
