# SPDX-License-Identifier: Apache-2.0
"""The pages beside those of live pools, as a reader keeps them from read to read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from . import identity
from .block import PAGE_BYTES, ROW, SITE_COUNTS
from .entries import SiteCounts, entries, text_at, texts_of
from .exemplars import decoded
from .numbers_cy import MOST, counts, table
from .page import (
    COPIES_AT,
    DOUBLES_AT,
    ROWS_AT,
    ROWS_PER_PAGE,
    SITE_COPIES_AT,
    SITE_DOUBLES,
    SITE_TEXT_BYTES,
    SITES_PER_PAGE,
    TEXT_AT,
    Commit,
)
from .worker import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Sequence

_KIND_BYTES: Final = 8
_HEAD: Final = struct.Struct("=QQd")  # of a page, after its kind
_COMMIT: Final = struct.Struct("=QdQQ")
_MOST_SECONDS: Final = 2.0**40  # of a Unix time


class Page:
    """A page as it was read; a subclass for each kind says what is in it. Without changes it is used again."""

    __slots__ = ("data", "owner", "used")

    def __init__(self, data: bytes, begin: int, before: Page | None) -> None:
        """Decode the page.

        Args:
            data: the file.
            begin: where the page begins.
            before: what was in its place at the last read.
        """
        first, second, self.used = _HEAD.unpack_from(data, begin + _KIND_BYTES)
        self.owner: tuple[int, int] = (first, second)  # or what the kind has in their place
        self.data = data[begin : begin + PAGE_BYTES]
        self.decode(before)

    def is_same(self, data: bytes, begin: int) -> bool:
        """Return whether a file still has the page."""
        return data.startswith(self.data, begin)

    def decode(self, before: Page | None) -> None:
        """Read what the page says."""


class TotalsPage(Page):
    """Mutable state: what was made of it last, and of which sites."""

    __slots__ = ("_sites", "_whole", "commit")

    def decode(self, before: Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read which copy of the counts is in use."""
        word, ended, _, _ = _COMMIT.unpack_from(self.data, DOUBLES_AT)
        if not 0.0 <= ended < _MOST_SECONDS:
            raise SegmentError("a time that is no number")
        self.commit = Commit.of(word)
        self._sites: SitesPage | None = None
        self._whole: WorkerPool | None = None

    def with_sites(self, sites: SitesPage | None) -> WorkerPool:
        """Return the totals with their sites."""
        if self._whole is None or self._sites is not sites:
            _, ended, resting, brief = _COMMIT.unpack_from(self.data, DOUBLES_AT)
            self._whole = WorkerPool.of_totals(
                identity.read(self.data[TEXT_AT:DOUBLES_AT]),
                counts(self.data, 8 * COPIES_AT[self.commit.copy]),
                ended,
                sites=[] if sites is None else sites.sites(self.commit.copy),
                is_resting=bool(resting),
                brief=brief,
            )
            self._sites = sites
        return self._whole


class SitesPage(Page):
    """Mutable state: the sites, with each copy of their counts that was asked for."""

    __slots__ = ("copies",)

    def decode(self, before: Page | None) -> None:
        """Read the sites that have changed."""
        self.copies: dict[int, list[SiteCounts]] = {}
        if isinstance(before, SitesPage):
            for copy, known in before.copies.items():
                self.copies[copy] = _sites(self.data, copy, before.data, known)

    def sites(self, copy: int) -> list[SiteCounts]:
        """Return the sites with one copy of their counts."""
        if copy not in self.copies:
            self.copies[copy] = _sites(self.data, copy)
        return self.copies[copy]


class RowsPage(Page):
    """Further rows of a pool's connections."""

    __slots__ = ("rows",)

    def decode(self, before: Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read the rows."""
        if not 0.0 <= self.used <= ROWS_PER_PAGE:
            raise SegmentError("tables of an impossible length")
        self.rows = table(self.data[8 * ROWS_AT : 8 * (ROWS_AT + ROW * int(self.used))], ROW)


class TextsPage(Page):
    """Texts that rows refer to by number."""

    __slots__ = ("texts",)

    def decode(self, before: Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read the texts."""
        self.texts = texts_of(self.data)


class ExemplarsPage(Page):
    """Exemplars of a pool's histograms."""

    __slots__ = ("exemplars",)

    def decode(self, before: Page | None) -> None:  # noqa: ARG002 - of the base class
        """Read the exemplars; what is damaged is left out, because a writer may have been in the middle of it."""
        self.exemplars = decoded(self.data)


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
        if not all(0.0 <= count < MOST for count in counts):
            raise SegmentError("a count that is no number")
        text = last.text if last is not None and is_same else text_at(page, at, SITE_TEXT_BYTES)
        found.append(SiteCounts(text, counts))
    return found
