# SPDX-License-Identifier: Apache-2.0
"""Reads what the pages of a file say; any damage raises one error."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.pausing import pause

from . import facts
from .block import PAGE_BYTES
from .entries import NO_TEXTS, Texts
from .format import FACTS_AT, HEADER_BYTES
from .other_pages import ExemplarsPage, Page, RowsPage, SitesPage, TextsPage, TotalsPage
from .page import EXEMPLARS, FREE, HOLDERS, LABELS, POOL, ROW_PAGES, ROWS, SITES, TEXTS, TOTALS

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import has
    from cython.cimports.sqlalchemy_pool_exporter.segment.pool_page_cy import PoolPage
else:
    from .pool_page_cy import PoolPage

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from .entries import SiteCounts
    from .exemplars import Exemplars
    from .facts import Facts
    from .format import Header
    from .worker import WorkerPool

_KIND: Final = struct.Struct("=Q")  # of a page
_KINDS: Final[dict[int, type[Page]]] = {
    TOTALS: TotalsPage,
    SITES: SitesPage,
    ROWS: RowsPage,
    TEXTS: TextsPage,
    EXEMPLARS: ExemplarsPage,
}
_PAGES_A_PAUSE: Final = 8


class _Arrangement(NamedTuple):
    """Which pages belong together."""

    totals: list[WorkerPool]  # of pools that are gone
    # With their sites, further rows and exemplars.
    pools: list[tuple[PoolPage, Sequence[SiteCounts] | None, Sequence[array[float]], Exemplars]]
    texts: Texts


class Contents:
    """What the pages of one file say.

    A page that is as it was at the last read is not decoded again, so a pool that does nothing costs a comparison.
    Mutable state: the pages, in their order, and None for a free one; which of them belong together, unless one of
    another kind than that of a pool has changed since; the facts about the process, and the bytes that say them; and
    likewise the header, which belongs to who reads the file.
    """

    __slots__ = ("_arrangement", "_facts", "_facts_said", "_pages", "header", "said")

    def __init__(self) -> None:
        self._pages: list[PoolPage | Page | None] = []
        self._arrangement: _Arrangement | None = None
        self._facts_said = b""
        self._facts = facts.Facts(None, None)
        self.said = b""
        self.header: Header

    def facts(self, data: bytes) -> Facts:
        """Return the facts about the process that writes a file; the argument is that of ``read()``."""
        if cython.compiled:
            is_same: cython.bint = len(self._facts_said) > 0 and has(data, FACTS_AT, self._facts_said)
        else:
            is_same = bool(self._facts_said) and data.startswith(self._facts_said, FACTS_AT)
        if not is_same:
            self._facts_said = data[FACTS_AT:HEADER_BYTES]
            self._facts = facts.read(self._facts_said.rstrip(b"\0"))
        return self._facts

    def read(self, data: bytes) -> tuple[tuple[WorkerPool, ...], Texts]:
        """Return the pools in a file, the live ones and the totals of those that are gone, and its texts.

        Args:
            data: the file as far as it is in use.

        Raises:
            SegmentError: it is damaged.
        """
        page: PoolPage
        self._read(data)
        arrangement = self._arrangement
        if arrangement is None:
            arrangement = self._arrangement = self._arranged()
        pools = arrangement.totals[:]
        for page, sites, more, exemplars in arrangement.pools:
            pools.append(page.whole(sites, more, exemplars))
        return tuple(pools), arrangement.texts

    def _read(self, data: bytes) -> None:
        pages = self._pages
        at: cython.Py_ssize_t
        begin: cython.Py_ssize_t
        pool_page: PoolPage
        count: cython.Py_ssize_t = (len(data) - HEADER_BYTES) // PAGE_BYTES
        if len(pages) > count:
            self._arrangement = None
            del pages[count:]
        for at in range(count):
            begin = HEADER_BYTES + PAGE_BYTES * at
            if at % _PAGES_A_PAUSE == 0:
                pause()
            before = pages[at] if at < len(pages) else None
            if type(before) is PoolPage:
                pool_page = before
                if pool_page.renew(data, begin):
                    continue
            elif isinstance(before, Page) and before.is_same(data, begin):
                continue
            kind = _KIND.unpack_from(data, begin)[0]
            if before is None and at < len(pages) and kind == FREE:
                continue
            page = _decoded(data, begin, kind, before)
            self._arrangement = None
            if at < len(pages):
                pages[at] = page
            else:
                pages.append(page)

    def _arranged(self) -> _Arrangement:
        """Find out which pages belong together, by their number and birth, or by those of what they belong to."""
        pools: dict[tuple[int, int], PoolPage] = {}
        totals: dict[int, TotalsPage] = {}
        sites: dict[tuple[int, int], SitesPage] = {}
        rows: dict[tuple[int, int], list[array[float]]] = {}
        texts: dict[int, list[str]] = {}
        exemplars: dict[tuple[int, int], Exemplars] = {}
        for at, page in enumerate(self._pages):
            number = at + HEADER_BYTES // PAGE_BYTES
            if isinstance(page, PoolPage):
                pools[number, page.birth] = page
            elif isinstance(page, TotalsPage):
                totals[number] = page
            elif isinstance(page, SitesPage):
                # A time limit of the application can leave an empty page beside the one that is used.
                if page.owner not in sites or page.used:
                    sites[page.owner] = page
            elif isinstance(page, RowsPage):
                rows.setdefault(page.owner, []).append(page.rows)
            elif isinstance(page, ExemplarsPage):
                exemplars[page.owner] = page.exemplars or exemplars.get(page.owner, ())  # as with sites
            elif isinstance(page, TextsPage) and len(page.texts) > len(texts.get(page.owner[0], ())):
                texts[page.owner[0]] = page.texts  # as with sites
        folded = {(page.commit.page, page.commit.birth) for page in totals.values()}
        return _Arrangement(
            [page.with_sites(sites.get((number, 0))) for number, page in totals.items()],
            [
                (
                    page,
                    sites[owner].sites(0) if owner in sites else None,
                    rows.get(owner, [])[:ROW_PAGES] or (),
                    exemplars.get(owner, ()),
                )
                for owner, page in pools.items()
                if owner not in folded
            ],
            Texts(*(texts.get(purpose, []) for purpose in (HOLDERS, LABELS))) if texts else NO_TEXTS,
        )


def _decoded(data: bytes, begin: int, kind: int, before: PoolPage | Page | None) -> PoolPage | Page | None:
    """Return a page, or None if it is free; ``before`` is what was in its place at the last read."""
    if kind == FREE:
        return None
    if kind == POOL:
        return PoolPage(data, begin)
    if kind not in _KINDS:
        message = f"the page at byte {begin} is of an unknown kind"
        raise SegmentError(message)
    return _KINDS[kind](data, begin, before if isinstance(before, Page) else None)
