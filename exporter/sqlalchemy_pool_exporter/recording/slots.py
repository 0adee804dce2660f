# SPDX-License-Identifier: Apache-2.0
"""The free list of a table in a block: the table of waiters, or of connections."""

from __future__ import annotations


class FreeSlots:
    """The free list of one table, as indexes into the block.

    There is no lock. The last slot is read and deleted without a call in between, and given back with the atomic
    ``list.append``; the hot path does both directly. So no slot is lost if a time limit strikes. The used part of the
    table grows by one slot at a time, so that a reader reads only the part that was ever in use.
    """

    __slots__ = ("_first", "_next", "_stride", "_used", "free")

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
        # The mutable state: the slots that came back, and how many slots were ever in use.
        self.free: list[int] = []
        self._next = 0

    def has_room(self, block: memoryview[float], size: int) -> bool:
        """Return whether a table with ``size`` slots has a free one, unless another thread takes it."""
        return bool(self.free) or block[self._used] < size

    def acquire(self, block: memoryview[float], size: int) -> int:
        """Return a free slot of a table with ``size`` slots, or 0 if all are taken."""
        free = self.free
        # Two threads must take different slots. Each straight line is a single line, because a debugger can switch
        # threads between two lines.
        try:
            # straight line
            at = free[-1]; del free[-1]  # fmt: skip # noqa: E702
        # end of straight line
        except IndexError:
            # straight line
            self._next = block[self._used] = (number := self._next) + (self._next < size)
            # end of straight line
            at = self._first + self._stride * number if number < size else 0
        return at

    def clear(self) -> None:
        """Forget all slots, because a new block replaces this one."""
        self.free.clear()
        self._next = 0
