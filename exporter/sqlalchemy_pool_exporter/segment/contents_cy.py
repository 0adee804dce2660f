# SPDX-License-Identifier: Apache-2.0
"""Reads what the pages of a file say; any damage raises one error."""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter import cython
from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.pausing import pause

from . import facts, identity
from .block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    FIELDS,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    PAGE_BYTES,
    RECYCLE,
    ROW,
    SITE_COUNTS,
    SITES_OFF,
    SIZE,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from .block import ROWS as ROWS_IN_BLOCK
from .entries import SiteCounts, Texts, entries, text_at, texts_of, with_sites
from .format import FACTS_AT, HEADER_BYTES
from .page import (
    COPIES_AT,
    COUNTS,
    DOUBLES_AT,
    FREE,
    HOLDERS,
    LABELS,
    POOL,
    ROW_PAGES,
    ROWS,
    ROWS_AT,
    ROWS_PER_PAGE,
    SITE_COPIES_AT,
    SITE_DOUBLES,
    SITE_TEXT_BYTES,
    SITES,
    SITES_PER_PAGE,
    TEXT_AT,
    TEXTS,
    TOTALS,
    Commit,
)
from .snapshot import Snapshot

if cython.compiled:  # never run; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .facts import Facts
    from .identity import Description, Identity
    from .snapshot import Counts

_KIND: Final = struct.Struct("=Q")  # of a page
_HEAD: Final = struct.Struct("=QQd")  # of a page, after its kind
_COMMIT: Final = struct.Struct("=QdQQ")
_MOST_SECONDS: Final = 2.0**40  # of a Unix time
# Valid highest bytes of a count. That byte has the sign and most of the exponent. With one of these values the count is
# finite, not negative, and below 2**49, which is more than any process ever counts.
_HIGHEST_BYTES: Final = bytes(range(0x43))
# The same for the state, whose times can be negative.
_HIGHEST_SIGNED: Final = _HIGHEST_BYTES + bytes(range(0x80, 0xC3))
_MOST: Final = 2.0**49
_NO_NUMBER: Final = "a count or a time that is no number"
_HIGHEST: Final = 7 if sys.byteorder == "little" else 0


class WorkerPool(NamedTuple):
    """One pool of one worker, or the totals of the pools of one description that are gone."""

    identity: Identity
    info: dict[str, str]
    snapshot: Snapshot
    ended: float | None = None  # of totals: the Unix time at which the last pool went
    is_resting: bool = False  # of totals: the last process ended with such a pool
    brief: int = 0  # of totals: how many pools of the process that writes went after a few checkouts

    @classmethod
    def of_totals(  # noqa: PLR0913 - what a page of totals says
        cls,
        described: Description,
        counts: Counts,
        ended: float,
        *,
        sites: Sequence[SiteCounts] = (),
        is_resting: bool = False,
        brief: int = 0,
    ) -> WorkerPool:
        """Return the totals of pools that are gone."""
        fields = [0.0] * FIRST_COUNTER
        fields[HAS_OVERFLOW] = float(described.has_overflow)
        snapshot = Snapshot(fields, [], [], counts, sites)
        return cls(described.identity, described.info, snapshot, ended, is_resting, brief)

    @property
    def name(self) -> str:
        """The name that the application gave, or the default name."""
        return self.identity.name


class Contents:
    """What the pages of one file say.

    A page that is as it was at the last read is not decoded again, so a pool that does nothing costs a comparison.
    Mutable state: the pages, by where they begin; the facts about the process, and the bytes that say them.
    """

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}
        self._said, self._facts = b"", facts.Facts(None, None)

    def facts(self, data: bytes) -> Facts:
        """Return the facts about the process that writes a file; the argument is that of ``read()``."""
        if not (self._said and data.startswith(self._said, FACTS_AT)):
            self._said = data[FACTS_AT:HEADER_BYTES]
            self._facts = facts.read(self._said.rstrip(b"\0"))
        return self._facts

    def read(self, data: bytes) -> tuple[tuple[WorkerPool, ...], Texts]:
        """Return the pools in a file, the live ones and the totals of those that are gone, and its texts.

        Args:
            data: the file as far as it is in use.

        Raises:
            SegmentError: it is damaged.
        """
        self._pages = dict(self._read(data))
        found = _Found.of(self._pages)
        pools: list[WorkerPool] = []
        folded: set[tuple[int, int]] = set()
        for number, totals in found.totals.items():
            folded.add((totals.commit.page, totals.commit.birth))
            pools.append(totals.with_sites(found.sites.get((number, 0))))
        for owner, pool in found.pools.items():
            if owner not in folded:
                pools.append(pool.whole(found.sites.get(owner), found.rows.get(owner, [])[:ROW_PAGES]))
        return tuple(pools), Texts(*(found.texts.get(purpose, []) for purpose in (HOLDERS, LABELS)))

    def _read(self, data: bytes) -> Iterator[tuple[int, _Page]]:
        for begin in range(HEADER_BYTES, len(data), PAGE_BYTES):
            pause()
            before = self._pages.get(begin)
            if before is not None and before.is_same(data, begin):
                yield begin, before
                continue
            kind = _KIND.unpack_from(data, begin)[0]
            if kind == FREE:
                continue
            if kind not in _KINDS:
                message = f"the page at byte {begin} is of an unknown kind"
                raise SegmentError(message)
            yield begin, _KINDS[kind](data, begin, before)


class _Page:
    """A page as it was read; a subclass for each kind says what is in it. Without changes it is used again."""

    __slots__ = ("data", "owner", "used")

    def __init__(self, data: bytes, begin: int, before: _Page | None) -> None:
        """Decode the page.

        Args:
            data: the file.
            begin: where the page begins.
            before: what was in its place at the last read.
        """
        first, second, self.used = _HEAD.unpack_from(data, begin + _KIND.size)
        self.owner: tuple[int, int] = (first, second)  # or what the kind has in their place
        self.data = data[begin : begin + PAGE_BYTES]
        self.decode(before)

    def is_same(self, data: bytes, begin: int) -> bool:
        """Return whether a file still has the page."""
        return data.startswith(self.data, begin)

    def decode(self, before: _Page | None) -> None:
        """Read what the page says."""


class _PoolPage(_Page):
    """The block of a pool: of the page, only what is in use is compared and kept.

    Mutable state: what was made of it last, and of which other pages.
    """

    __slots__ = ("_connections", "_parts", "_snapshot", "_state", "_waiters", "_whole", "described")

    def __init__(self, data: bytes, begin: int, before: _Page | None) -> None:
        self.used = 0.0
        self.owner = _HEAD.unpack_from(data, begin + _KIND.size)[0], 0
        same = before if isinstance(before, _PoolPage) and data.startswith(before.data, begin) else None
        self.data = data[begin : begin + DOUBLES_AT] if same is None else same.data
        self.described: Description = identity.read(self.data[TEXT_AT:]) if same is None else same.described
        block = begin + DOUBLES_AT
        self._state = data[block : block + 8 * FIELDS]
        state = array("d", self._state)
        waiters, connections = state[WAITERS_USED], state[CONNECTIONS_USED]
        # Comparisons with NaN are false.
        if not (0.0 <= waiters <= WAITERS and 0.0 <= connections <= ROWS_IN_BLOCK):
            raise SegmentError("tables of an impossible length")
        at = block + 8 * WAITERS_AT
        self._waiters = data[at : at + 8 * int(waiters)]
        at = block + 8 * CONNECTIONS_AT
        self._connections = data[at : at + 8 * ROW * int(connections)]
        self._snapshot = _snapshot(state, self._waiters, self._connections)
        self._parts: tuple[_SitesPage | None, list[_RowsPage]] | None = None
        self._whole: WorkerPool | None = None

    def is_same(self, data: bytes, begin: int) -> bool:
        """Return whether a file still has the page, as far as it is in use."""
        block = begin + DOUBLES_AT
        return (
            data.startswith(self._state, block)
            and data.startswith(self._connections, block + 8 * CONNECTIONS_AT)
            and data.startswith(self._waiters, block + 8 * WAITERS_AT)
            and data.startswith(self.data, begin)
        )

    def whole(self, sites: _SitesPage | None, more: list[_RowsPage]) -> WorkerPool:
        """Return the pool with its sites and further rows."""
        parts = (sites, more)
        if self._whole is None or self._parts != parts:  # pages are equal only if they are the same
            snapshot = self._snapshot
            if sites is not None:
                snapshot = snapshot._replace(sites=sites.sites(0))
            if more:
                rows = array("d", snapshot.connections)
                for page in more:
                    rows.extend(page.rows)
                snapshot = snapshot._replace(connections=rows)
            described = self.described
            self._whole, self._parts = WorkerPool(described.identity, described.info, snapshot), parts
        return self._whole


class _TotalsPage(_Page):
    """Mutable state: what was made of it last, and of which sites."""

    __slots__ = ("_sites", "_whole", "commit")

    def decode(self, before: _Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read which copy of the counts is in use."""
        word, ended, _, _ = _COMMIT.unpack_from(self.data, DOUBLES_AT)
        if not 0.0 <= ended < _MOST_SECONDS:
            raise SegmentError("a time that is no number")
        self.commit = Commit.of(word)
        self._sites: _SitesPage | None = None
        self._whole: WorkerPool | None = None

    def with_sites(self, sites: _SitesPage | None) -> WorkerPool:
        """Return the totals with their sites."""
        if self._whole is None or self._sites is not sites:
            _, ended, resting, brief = _COMMIT.unpack_from(self.data, DOUBLES_AT)
            self._whole = WorkerPool.of_totals(
                identity.read(self.data[TEXT_AT:DOUBLES_AT]),
                _counts(self.data, 8 * COPIES_AT[self.commit.copy]),
                ended,
                sites=[] if sites is None else sites.sites(self.commit.copy),
                is_resting=bool(resting),
                brief=brief,
            )
            self._sites = sites
        return self._whole


class _SitesPage(_Page):
    """Mutable state: the sites, with each copy of their counts that was asked for."""

    __slots__ = ("copies",)

    def decode(self, before: _Page | None) -> None:
        """Read the sites that have changed."""
        self.copies: dict[int, list[SiteCounts]] = {}
        if isinstance(before, _SitesPage):
            for copy, known in before.copies.items():
                self.copies[copy] = _sites(self.data, copy, before.data, known)

    def sites(self, copy: int) -> list[SiteCounts]:
        """Return the sites with one copy of their counts."""
        if copy not in self.copies:
            self.copies[copy] = _sites(self.data, copy)
        return self.copies[copy]


class _RowsPage(_Page):
    __slots__ = ("rows",)

    def decode(self, before: _Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read the rows."""
        if not 0.0 <= self.used <= ROWS_PER_PAGE:
            raise SegmentError("tables of an impossible length")
        self.rows = _table(self.data[8 * ROWS_AT : 8 * (ROWS_AT + ROW * int(self.used))], ROW)


class _TextsPage(_Page):
    __slots__ = ("texts",)

    def decode(self, before: _Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read the texts."""
        self.texts = texts_of(self.data)


_KINDS: Final[dict[int, type[_Page]]] = {
    POOL: _PoolPage,
    TOTALS: _TotalsPage,
    SITES: _SitesPage,
    ROWS: _RowsPage,
    TEXTS: _TextsPage,
}


class _Found(NamedTuple):
    """The pages of each kind; by their number and birth, or those of what they belong to."""

    pools: dict[tuple[int, int], _PoolPage]
    totals: dict[int, _TotalsPage]
    sites: dict[tuple[int, int], _SitesPage]
    rows: dict[tuple[int, int], list[_RowsPage]]
    texts: dict[int, list[str]]

    @classmethod
    def of(cls, pages: Mapping[int, _Page]) -> _Found:
        """Look at all pages."""
        found = cls({}, {}, {}, {}, {})
        for begin, page in pages.items():
            if isinstance(page, _PoolPage):
                found.pools[begin // PAGE_BYTES, page.owner[0]] = page
            elif isinstance(page, _TotalsPage):
                found.totals[begin // PAGE_BYTES] = page
            elif isinstance(page, _SitesPage):
                # A time limit of the application can leave an empty page beside the one that is used.
                if page.owner not in found.sites or page.used:
                    found.sites[page.owner] = page
            elif isinstance(page, _RowsPage):
                found.rows.setdefault(page.owner, []).append(page)
            elif isinstance(page, _TextsPage) and len(page.texts) > len(found.texts.get(page.owner[0], ())):
                found.texts[page.owner[0]] = page.texts  # as with sites
        return found


def _sites(page: bytes, copy: int, before: bytes = b"", known: Sequence[SiteCounts] = ()) -> list[SiteCounts]:
    """Return the sites in a page; those that are as they were are taken from what is known of an earlier read."""
    doubles: Any = memoryview(page).cast("d")
    counts_at = SITE_COPIES_AT[copy]
    found: list[SiteCounts] = []
    for number, at in enumerate(entries(doubles, SITE_DOUBLES, SITES_PER_PAGE)):
        begin, end = 8 * at, 8 * (at + SITE_DOUBLES)
        last = known[number] if number < len(known) else None
        if last is not None and page[begin:end] == before[begin:end]:
            found.append(last)
            continue
        text_end = begin + SITE_TEXT_BYTES
        is_same = last is not None and page[begin:text_end] == before[begin:text_end]
        counts = doubles[at + counts_at : at + counts_at + SITE_COUNTS].tolist()
        # Comparisons with NaN are false.
        if not all(0.0 <= count < _MOST for count in counts):
            raise SegmentError("a count that is no number")
        text = last.text if last is not None and is_same else text_at(page, at, SITE_TEXT_BYTES)
        found.append(SiteCounts(text, counts))
    return found


def _snapshot(state: array[float], waiters: bytes, connections: bytes) -> Snapshot:
    """Return what a block says, from its fields and the parts of its tables that are in use."""
    # Only a limit that does not apply is NaN.
    _used(state, 0, SIZE, -_MOST)
    for at in range(SIZE, RECYCLE + 1):
        if abs(state[at]) >= _MOST:
            raise SegmentError(_NO_NUMBER)
    _used(state, RECYCLE + 1, FIRST_COUNTER, -_MOST)
    _used(state, FIRST_COUNTER, FIELDS, 0.0)
    # Arrays make no float objects until a number is asked for. Those were most of what a scrape allocated.
    return Snapshot(
        state[:FIRST_COUNTER],
        _table(waiters, 1),
        _table(connections, ROW),
        with_sites(state[FIRST_COUNTER:], are_off=bool(state[SITES_OFF])),
    )


def _table(data: bytes, width: int) -> array[float]:
    """Return the rows of a table without the free ones at its end, which are most of the table."""
    table = array("d", data)
    used = -(-_used(table, 0, len(table), -_MOST) // width) * width
    return table if used == len(table) else table[:used]


def _counts(data: bytes, begin: int) -> array[float]:
    counts = array("d", data[begin : begin + 8 * COUNTS])
    _used(counts, 0, COUNTS, 0.0)
    return counts


def _used(doubles: array[float], begin: int, end: int, least: float) -> int:
    """Return where the numbers in a part of a table end that are not 0; most rows of most tables are free.

    Raises:
        SegmentError: one is less than ``least``, too large, or no number.
    """
    if cython.compiled:
        return _checked(doubles, begin, end, least)
    data = doubles[begin:end].tobytes()
    if data[_HIGHEST::8].translate(None, _HIGHEST_BYTES if least == 0.0 else _HIGHEST_SIGNED):
        raise SegmentError(_NO_NUMBER)
    return begin + (len(data.rstrip(b"\0")) + 7) // 8


@cython.boundscheck(False)  # noqa: FBT003 - Cython's signature
@cython.wraparound(False)  # noqa: FBT003
@cython.locals(
    numbers="double[::1]",
    begin="Py_ssize_t",
    end="Py_ssize_t",
    at="Py_ssize_t",
    used="Py_ssize_t",
    least="double",
    most="double",
    number="double",
)
def _checked(doubles: array[float], begin: int, end: int, least: float) -> int:
    numbers, used, most = doubles, begin, _MOST
    for at in range(begin, end):
        number = numbers[at]
        if not least <= number < most:  # comparisons with NaN are false
            raise SegmentError(_NO_NUMBER)
        if number:
            used = at + 1
    return used
