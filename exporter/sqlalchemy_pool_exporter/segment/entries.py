# SPDX-License-Identifier: Apache-2.0
"""Tables of texts in pages: the sites of a pool with their counts, and the texts that rows refer to by number.

An entry is written once: its text first, and then the number of entries that are used. Two threads that add the same
text at once may make two entries; a reader adds up those of one text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import FIRST_COUNTER, HOLD, LEAKED_CHECKOUTS, OTHER_SITES, SITE_COUNTS, SUM, WAIT, WITHOUT_SITES
from .page import (
    ENTRIES_AT,
    ENTRIES_USED,
    SITE_COPIES_AT,
    SITE_DOUBLES,
    SITE_TEXT_BYTES,
    SITES_PER_PAGE,
    TEXT_DOUBLES,
    TEXTS_PER_PAGE,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

# Indexes into the counts of a site. They only grow.
CHECKOUTS, HOLDS, HELD_SECONDS, NESTED, LEAKED, SUSPECTED = range(SITE_COUNTS)
# What a cut text begins with: its end tells more.
_CUT: Final = "…"


# All sites that have no entry of their own.
OTHER: Final = "other"


_Counts = TypeVar("_Counts", list[float], "array[float]")


class SiteCounts(NamedTuple):
    """What happened at one site: a place of the application that checks connections out."""

    text: str
    counts: Sequence[float]


class Texts(NamedTuple):
    """The texts of one process that rows refer to by number, from 1."""

    holders: Sequence[str]  # names of threads, and of asyncio tasks that have a name of their own
    labels: Sequence[str]  # what the application said that it was doing

    def holder(self, number: float) -> str:
        """Return the name of the thread or task that a row has in its field ``HOLDER``."""
        if number >= 0.0:
            return _at(self.holders, number)
        return f"Task-{-number:.0f}" if number.is_integer() else f"Thread-{UNNAMED_THREAD - number:.0f}"

    def label(self, number: float) -> str:
        """Return the text that a row has in its field ``LABEL``."""
        return _at(self.labels, number)


# What a row has of a thread without a name of its own: this less its number.
UNNAMED_THREAD: Final = -0.5


def task_number(holder: float) -> int:
    """Return the number of an asyncio task without a name of its own, from ``HOLDER``; 0 for another holder."""
    return -int(holder) if holder < 0.0 and holder.is_integer() else 0


NO_TEXTS: Final = Texts((), ())


def _at(texts: Sequence[str], number: float) -> str:
    return texts[int(number) - 1] if 1.0 <= number <= len(texts) else ""


class EntryWriter:
    """The entries of one page. Mutable state: how many there are."""

    __slots__ = ("_bytes", "_doubles", "_length", "_next", "_size", "_text_bytes")

    def __init__(self, page: memoryview, *, doubles: int, text_bytes: int, length: int) -> None:
        """Write entries after those that are there.

        Args:
            page: all of the page.
            doubles: the length of an entry.
            text_bytes: the length of its text, which comes first.
            length: how many entries fit.
        """
        self._bytes = page
        self._doubles: memoryview[float] = page.cast("d")
        self._size, self._text_bytes, self._length = doubles, text_bytes, length
        self._next = int(self._doubles[ENTRIES_USED])

    @classmethod
    def of_sites(cls, page: memoryview) -> EntryWriter:
        """Write sites."""
        return cls(page, doubles=SITE_DOUBLES, text_bytes=SITE_TEXT_BYTES, length=SITES_PER_PAGE)

    @classmethod
    def of_texts(cls, page: memoryview) -> EntryWriter:
        """Write texts."""
        return cls(page, doubles=TEXT_DOUBLES, text_bytes=8 * TEXT_DOUBLES, length=TEXTS_PER_PAGE)

    @property
    def taken(self) -> int:
        """How many entries are taken."""
        return self._next

    def add(self, text: str) -> tuple[int, int]:
        """Add an entry; return its number, from 1, and its index in doubles. Both are 0 if the page is full."""
        # straight line: two threads must take different entries
        self._next = (index := self._next) + (self._next < self._length)
        # end of straight line
        if index >= self._length:
            return 0, 0
        at = ENTRIES_AT + index * self._size
        encoded = fitting(text, self._text_bytes)
        self._bytes[8 * at : 8 * at + len(encoded)] = encoded
        doubles = self._doubles
        # straight line: another thread may have added a later one
        if index >= doubles[ENTRIES_USED]:
            doubles[ENTRIES_USED] = index + 1.0
        # end of straight line
        return index + 1, at

    def replace(self, number: int, text: str) -> None:
        """Write another text into an entry; nothing if there is none."""
        if number <= self._next:
            at, size = 8 * (ENTRIES_AT + (number - 1) * self._size), self._text_bytes
            self._bytes[at : at + size] = fitting(text, size).ljust(size, b"\0")


def fitting(text: str, size: int) -> bytes:
    """Return a text in at most ``size`` bytes of UTF-8; of a longer one the end."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= size:
        return encoded
    cut = encoded[len(encoded) - size + len(_CUT.encode()) :]
    return _CUT.encode() + cut.decode("utf-8", "ignore").encode()


# -- the reader


def with_sites(counts: _Counts, *, are_off: bool) -> _Counts:
    """Return the counters of a block; if its pool records no sites, also those of all that has no site.

    So the sum over all sites is the total if some processes record sites and others do not, and these store no more.

    Args:
        counts: the fields from FIRST_COUNTER on.
        are_off: whether the pool records no sites.
    """
    if are_off:
        wait, hold, none, others = (at - FIRST_COUNTER for at in (WAIT, HOLD, WITHOUT_SITES, OTHER_SITES))
        counts[none + CHECKOUTS] = sum(counts[wait : wait + SUM])
        counts[none + HOLDS] = sum(counts[hold : hold + SUM])
        counts[none + HELD_SECONDS] = counts[hold + SUM]
        counts[none + LEAKED] = counts[LEAKED_CHECKOUTS - FIRST_COUNTER]
        # What a return off the hot path counted.
        counts[others + HOLDS] = counts[others + HELD_SECONDS] = counts[others + LEAKED] = 0.0
    return counts


def sites_of(page: bytes | memoryview, copy: int, known: dict[int, str] | None = None) -> list[SiteCounts]:
    """Return the sites in a page; the text of one that is being added is empty.

    Args:
        page: all of the page.
        copy: which copy of the counts is in use.
        known: texts of the page that were read before, by where their entry begins; it gets those that are new.

    Raises:
        SegmentError: the page is damaged.
    """
    doubles: Any = memoryview(page).cast("d")
    counts_at = SITE_COPIES_AT[copy]
    known = {} if known is None else known
    found: list[SiteCounts] = []
    for at in entries(doubles, SITE_DOUBLES, SITES_PER_PAGE):
        text = known.get(at, "")
        if not text and (text := text_at(page, at, SITE_TEXT_BYTES)):
            known[at] = text
        found.append(SiteCounts(text, doubles[at + counts_at : at + counts_at + SITE_COUNTS].tolist()))
    return found


def texts_of(page: bytes | memoryview) -> list[str]:
    """Return the texts in a page.

    Raises:
        SegmentError: the page is damaged.
    """
    doubles = memoryview(page).cast("d")
    return [text_at(page, at, 8 * TEXT_DOUBLES) for at in entries(doubles, TEXT_DOUBLES, TEXTS_PER_PAGE)]


def entries(doubles: memoryview[float], size: int, length: int) -> range:
    """Return where the entries of a page begin, in doubles.

    Args:
        doubles: the page.
        size: of an entry, in doubles.
        length: how many entries there can be.

    Raises:
        SegmentError: the page is damaged.
    """
    used = doubles[ENTRIES_USED]
    if not 0.0 <= used <= length:
        raise SegmentError("a table of an impossible length")
    return range(ENTRIES_AT, ENTRIES_AT + size * int(used), size)


def text_at(page: bytes | memoryview, at: int, size: int) -> str:
    """Return a text that an exposition can show, or an empty one."""
    text = bytes(page[8 * at : 8 * at + size]).rstrip(b"\0").decode("utf-8", "replace")
    return text if text.isprintable() else ""
