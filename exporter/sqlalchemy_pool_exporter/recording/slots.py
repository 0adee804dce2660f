# SPDX-License-Identifier: Apache-2.0
"""The free list of a table in a block: the table of waiters, or of connections."""

from __future__ import annotations

from typing import Final

_CHUNK: Final = 16


class FreeSlots:
    """The free list of one table, as indexes into the block.

    There is no lock: ``list.pop`` and ``list.append`` are atomic, and the hot path calls them directly. The used part
    of the table grows by chunks, so that a reader reads only the part that was ever in use.
    """

    __slots__ = ("_first", "_stride", "_used", "free")

    def __init__(self, *, first: int, stride: int, used: int) -> None:
        """Describe a table.

        Args:
            first: index in the block at which the table begins.
            stride: doubles per slot.
            used: the field of the block that holds how many slots were ever in use.
        """
        self._first = first
        self._stride = stride
        self._used = used
        self.free: list[int] = []  # the mutable state

    def acquire(self, block: memoryview[float], size: int) -> int:
        """Return a free slot of a table with ``size`` slots, or 0 if all are taken."""
        try:
            return self.free.pop()
        except IndexError:
            pass
        used, most = self._used, float(size)
        # straight line: two threads that find the list empty must take different chunks. It is a single line because a
        # debugger can switch threads between two lines.
        block[used] = end = start + _CHUNK if (start := block[used]) + _CHUNK < most else most
        # end of straight line
        first, stride = self._first, self._stride
        self.free.extend(range(first + stride * (int(end) - 1), first + stride * int(start) - 1, -stride))
        try:
            return self.free.pop()
        except IndexError:
            return 0

    def clear(self) -> None:
        """Forget all slots, because a new block replaces this one."""
        self.free.clear()
