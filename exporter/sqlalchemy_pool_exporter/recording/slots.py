# SPDX-License-Identifier: Apache-2.0
"""The free slots of a table in a block: of the waiters, or of the connections."""

from __future__ import annotations

from typing import Final

_CHUNK: Final = 16


class FreeSlots:
    """Free slots of one table in a block, as indexes into the block.

    There is no lock: ``list.pop`` and ``list.append`` are atomic, and the hot path calls them directly. The part of the
    table that is in use grows by chunks, so that a reader looks at no more of it than was ever needed.
    """

    __slots__ = ("_first", "_stride", "_used", "free")

    def __init__(self, *, first: int, stride: int, used: int) -> None:
        """Describe a table.

        Args:
            first: where the table begins in the block.
            stride: how many doubles a slot has.
            used: the field of the block that says how many slots were ever in use.
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
        # straight line: two threads that find the list empty take different chunks. And one line, since a debugger
        # lets other threads in between two.
        block[used] = end = start + _CHUNK if (start := block[used]) + _CHUNK < most else most
        # end of straight line
        first, stride = self._first, self._stride
        self.free.extend(range(first + stride * (int(end) - 1), first + stride * int(start) - 1, -stride))
        try:
            return self.free.pop()
        except IndexError:
            return 0

    def clear(self) -> None:
        """Forget all slots: the block is replaced by a new one."""
        self.free.clear()
