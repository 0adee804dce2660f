# SPDX-License-Identifier: Apache-2.0
"""The open file descriptors of this process."""

from __future__ import annotations

from pathlib import Path


def count_descriptors() -> int:
    """Return how many file descriptors are open, with the one that reads their directory."""
    return len(list(Path("/proc/self/fd").iterdir()))
