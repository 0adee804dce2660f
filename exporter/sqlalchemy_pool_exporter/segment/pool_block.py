# SPDX-License-Identifier: Apache-2.0
"""The pages of one live pool, for its writer: the block, further rows, and the sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .block import OTHER_SITES
from .entries import EntryWriter, sites_of
from .exemplars import decoded
from .page import BIRTH, DOUBLES_AT, EXEMPLARS, ROW_PAGES, SITE_COPIES_AT, SITES
from .site_entry_cy import SiteEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from .entries import SiteCounts
    from .exemplars import Exemplars


class Pages(Protocol):
    """What a block, or the recorder that writes it, needs of the pages that it is in; see ``pages.Pages``."""

    is_adding: bool  # a thread adds a site or a page of exemplars; the others do without

    def page(self, number: int) -> memoryview:
        """Return the memory of a page."""

    def entries(self, kind: int, owner: int, birth: int = ...) -> int:
        """Take a page for entries or exemplars."""

    def more_rows(self, block: PoolBlock) -> memoryview[float] | None:
        """Take a page for rows."""

    def write_texts(self, purpose: int, texts: Sequence[str]) -> None:
        """Write texts."""

    def replace_texts(self, purpose: int, texts: Mapping[int, str]) -> None:
        """Write other texts in the place of some."""

    def changing(self) -> AbstractContextManager[None]:
        """Let readers wait."""

    def fold(self, block: PoolBlock, *, is_brief: bool = ...) -> bool:
        """Add the counts of a block to the totals."""


class PoolBlock:
    """The block of one live pool.

    The mutable state is the further pages of rows, the page of sites with the texts that were read from it, and the
    page of exemplars.
    """

    __slots__ = (
        "_exemplars",
        "_sites",
        "_texts",
        "birth",
        "doubles",
        "exemplars_page",
        "other_sites",
        "page",
        "pages",
        "rows",
        "sites_page",
        "text",
    )

    def __init__(self, pages: Pages, page: int, text: bytes) -> None:
        self.pages = pages
        self.page = page
        self.text = text
        memory = pages.page(page)
        self.birth: int = memory.cast("Q")[BIRTH]
        self.doubles: memoryview[float] = memory[DOUBLES_AT:].cast("d")
        self.rows: list[int] = []
        self.sites_page = 0
        self._sites: EntryWriter | None = None
        self._texts: dict[int, str] = {}
        self.exemplars_page = 0
        self._exemplars: memoryview | None = None
        # The entry of all sites that have none of their own.
        self.other_sites = SiteEntry(0, self.doubles, OTHER_SITES)

    def site(self, text: str) -> SiteEntry | None:
        """Return a new entry for a site; that of all others if there is no room; None if another thread adds one now.

        It never waits: the application checks a connection out.
        """
        pages, is_ours = self.pages, False
        try:
            # Only one thread can add. A time limit that struck just after a lock was acquired would leave it so, and no
            # site would ever be added again. A debugger can switch threads between two lines.
            # straight line
            if not pages.is_adding: pages.is_adding = is_ours = True  # fmt: skip # noqa: E701
            # end of straight line
            if not is_ours:
                return None
            if self._sites is None:
                self.sites_page = self.pages.entries(SITES, self.page, self.birth)
                if not self.sites_page:
                    return self.other_sites
                self._sites = EntryWriter.of_sites(self.pages.page(self.sites_page))
            number, at = self._sites.add(text)
        finally:
            if is_ours:
                pages.is_adding = False
        if not number:
            return self.other_sites
        return SiteEntry(number, self.pages.page(self.sites_page).cast("d"), at + SITE_COPIES_AT[0])

    def sites(self) -> list[SiteCounts]:
        """Return the sites and their counts now."""
        return sites_of(self.pages.page(self.sites_page), 0, self._texts) if self.sites_page else []

    def room_for_exemplars(self) -> memoryview | None:
        """Return the page of exemplars; None if there is no room, or another thread adds something now.

        It never waits: the application checks a connection out, or returns one.
        """
        pages, is_ours = self.pages, False
        if self._exemplars is not None:
            return self._exemplars
        try:
            # As in site().
            # straight line
            if not pages.is_adding: pages.is_adding = is_ours = True  # fmt: skip # noqa: E701
            # end of straight line
            if is_ours and not self.exemplars_page:
                self.exemplars_page = pages.entries(EXEMPLARS, self.page, self.birth)
            if is_ours and self.exemplars_page:
                self._exemplars = pages.page(self.exemplars_page)
        finally:
            if is_ours:
                pages.is_adding = False
        return self._exemplars

    def exemplars(self) -> Exemplars:
        """Return the exemplars now."""
        return () if self._exemplars is None else decoded(self._exemplars)

    @property
    def own_pages(self) -> tuple[int, ...]:
        """All its pages."""
        return (self.page, *self.rows, *filter(None, (self.sites_page, self.exemplars_page)))

    def more_rows(self) -> memoryview[float] | None:
        """Return another page for rows, which begin at ``ROWS_AT``; None if there is none."""
        return self.pages.more_rows(self) if len(self.rows) < ROW_PAGES else None
