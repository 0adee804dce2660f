# SPDX-License-Identifier: Apache-2.0
"""The room for the pages of one process: makes more pages, and hands out those that are free."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import PAGE_BYTES
from .format import CHANGES_WORD, HEADER_BYTES, USED_WORD
from .page import BIRTH, DOUBLES_AT, FREE, KIND, OWNER, OWNER_BIRTH, TEXT_AT, TEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# For so long a thread waits that another one makes room, and so long it sleeps in between.
_GROWING_SECONDS: Final = 1.0
_STEP_SECONDS: Final = 1 / 1024
_ZEROS: Final = bytes(PAGE_BYTES)


class Space:
    """Pages in private memory, one at a time."""

    def grow(self, _pages: int) -> list[memoryview]:
        """Return at least one more page, full of zeros.

        It is not an anonymous ``mmap``: Python maps that shared, so a forked child would write into its parent's pages.
        """
        return [memoryview(bytearray(PAGE_BYTES))]


class Room:
    """Mutable state: the pages, those that are free, whether a thread makes room, and how many changes go on."""

    def __init__(self, space: Space | None, pages: Sequence[memoryview]) -> None:
        """Begin with pages.

        Args:
            space: makes more pages.
            pages: those that there are; the first one has the header of a segment.
        """
        self._space = space or Space()
        self._pages = list(pages) or self._space.grow(0)
        self._header = self._pages[0].cast("Q")
        if not pages:
            self._header[USED_WORD] = HEADER_BYTES
        self.is_growing = False
        self._changing = 0
        self._free: list[int] = []

    def page(self, number: int) -> memoryview:
        """Return a page."""
        return self._pages[number]

    @property
    def changes(self) -> int:
        """A number that is odd while counts move from one page to another, and larger afterwards."""
        return self._header[CHANGES_WORD]

    @property
    def used(self) -> int:
        """How many bytes were ever in use."""
        return self._header[USED_WORD]

    def __len__(self) -> int:
        """Return how many pages are in use, without the header."""
        return len(self._pages) - 1 - len(self._free)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Tell readers that counts move or pages become free meanwhile."""
        # No call comes before these stores and those at the end: if a time limit struck in it, readers would wait on.
        # The garbage collector can run a finalizer of the application that folds another pool in between.
        self._changing += 1
        self._header[CHANGES_WORD] |= 1
        try:
            yield
        finally:
            self._changing -= 1
            if not self._changing:
                self._header[CHANGES_WORD] += 1

    def _take(self, *, wait: bool = True) -> int:
        """Return a free page."""
        try:
            number = self._free.pop()
        except IndexError:
            number = self._grow(wait=wait)
        header, end = self._header, (number + 1) * PAGE_BYTES
        # straight line: another thread can take a page, too
        if end > header[USED_WORD]:  # noqa: PLR1730 - max() is a call
            header[USED_WORD] = end
        # end of straight line
        return number

    def _grow(self, *, wait: bool) -> int:
        # No lock: a time limit that struck just after it was acquired would leave it so, and there would never again be
        # room. A thread that opens a connection does not wait: the thread that makes room can be in a finalizer of the
        # application, which can wait for that connection.
        is_ours, attempts = False, _GROWING_SECONDS / _STEP_SECONDS if wait else 0
        try:
            while True:
                # Only one thread makes room. A debugger can switch threads between two lines.
                # straight line
                if not self.is_growing: self.is_growing = is_ours = True  # fmt: skip # noqa: E701
                # end of straight line
                if is_ours:
                    break
                if not attempts:
                    raise SegmentError("another thread makes room at this moment")
                attempts -= 1
                time.sleep(_STEP_SECONDS)
            first = len(self._pages)
            more = self._space.grow(first)
            free = range(first + len(more) - 1, first, -1)
            # straight line: a time limit that struck in between would lose the pages
            self._pages += more
            self._free += free
            # end of straight line
            return first
        finally:
            if is_ours:
                self.is_growing = False

    def _write(self, number: int, kind: int, text: bytes, birth: int = 0) -> None:
        page = self.page(number)
        page[8:] = _ZEROS[8:]
        page[TEXT_AT:DOUBLES_AT] = text[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
        words = page.cast("Q")
        words[BIRTH] = birth
        words[KIND] = kind

    def _write_owned(self, number: int, kind: int, owner: int, birth: int) -> None:
        page = self.page(number)
        page[8:] = _ZEROS[8:]
        words = page.cast("Q")
        words[OWNER], words[OWNER_BIRTH] = owner, birth
        words[KIND] = kind

    def _release(self, *numbers: int) -> None:
        for number in numbers:
            self.page(number).cast("Q")[KIND] = FREE
            self._free.append(number)
