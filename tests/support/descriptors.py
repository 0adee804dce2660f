# SPDX-License-Identifier: Apache-2.0
"""The open file descriptors of this process."""

from __future__ import annotations

import gc
from pathlib import Path


def count_before() -> int:
    """Return how many file descriptors are open, without those that the garbage collector would close.

    Tests that ran before in this process may have left some, and it may run at any time.
    """
    gc.collect()
    return count_descriptors()


def count_descriptors() -> int:
    """Return how many file descriptors are open, with the one that reads their directory."""
    return len(list(Path("/proc/self/fd").iterdir()))
