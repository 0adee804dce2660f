# SPDX-License-Identifier: Apache-2.0
"""The writer of a process's pages: gives a block to each pool, and keeps the totals of those that are gone.

Only one thread at a time may call ``pool()``, ``fold()`` and ``drop_old()``; the application holds a lock then. Pools
that need more rows do so without: their threads take free pages with the atomic ``list.pop``.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import ACTIVE, FIELDS, FIRST_COUNTER, OTHER_SITES, PAGE_BYTES, SITE_COUNTS, SITES_OFF, USES
from .entries import EntryWriter, SiteCounts, sites_of, with_sites
from .format import BIRTHS_WORD, DROPS_WORD, WAS_USED_WORD
from .page import (
    BRIEF,
    COMMIT,
    COPIES_AT,
    COUNTS,
    DOUBLES_AT,
    ENDED,
    ENTRIES_AT,
    KIND,
    OWNER,
    OWNER_BIRTH,
    POOL,
    RESTING,
    ROWS,
    SITE_COPIES_AT,
    SITE_DOUBLES,
    SITES,
    TEXT_AT,
    TEXTS,
    TOTALS,
    Commit,
    added,
)
from .pool_block import PoolBlock
from .room import Room, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# A name that no live pool has had for this long is forgotten. Prometheus has its own memory.
RETENTION_SECONDS: Final = 3600.0
# So is the oldest of more such names than this, so that tenants that come and go cost what the live ones cost.
MOST_ENDED: Final = 64


class Totals(NamedTuple):
    """The sum of the counts of the pools of one description that are gone."""

    text: bytes
    counts: list[float]
    ended: float  # Unix time
    sites: list[SiteCounts]
    brief: int = 0


class Pages(Room):
    """The pages of one process.

    Mutable state: the totals by description: of pools of which one lives, and of
    those of which none lives, in the order in which the last one went.
    """

    def __init__(
        self,
        space: Space | None = None,
        pages: Sequence[memoryview] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Take over pages.

        Args:
            space: makes more pages.
            pages: those that there are; the first one has the header of a segment.
            wall: Unix time.
        """
        super().__init__(space, pages)
        self._wall = wall
        self.is_adding = False  # a thread adds a site or a page of exemplars; the others do without
        self._totals: dict[bytes, int] = {}
        self._sites: dict[int, int] = {}  # the page of the sites of a totals page
        self._texts: dict[int, EntryWriter] = {}  # by purpose
        self._live: Counter[bytes] = Counter()
        self._ended: dict[bytes, float] = {}
        self._resting: dict[bytes, float] = {}
        with self.changing():
            self._take_over()

    # -- pools

    def pool(self, text: bytes) -> PoolBlock:
        """Return a block of zeros for a pool with this description.

        Raises:
            SegmentError: there is no room.
        """
        self.drop_old()
        number = self._take()
        self._header[BIRTHS_WORD] = birth = self._header[BIRTHS_WORD] + 1
        self._write(number, POOL, text, birth)
        self._live[text] += 1
        self._ended.pop(text, None)
        if self._resting.pop(text, None) is not None:
            self.page(self._totals[text]).cast("Q")[RESTING] = 0
        return PoolBlock(self, number, text)

    def more_rows(self, block: PoolBlock) -> memoryview[float] | None:
        """Return another page for the rows of a pool, or None. It never waits: the application opens a connection."""
        try:
            number = self._take(wait=False)
        except SegmentError:
            return None
        self._write_owned(number, ROWS, block.page, block.birth)
        block.rows.append(number)
        return self.page(number).cast("d")

    def entries(self, kind: int, owner: int, birth: int = 0) -> int:
        """Return a page for what has one of its own, or 0. It never waits: the application checks a connection out."""
        try:
            number = self._take(wait=False)
        except SegmentError:
            return 0
        self._write_owned(number, kind, owner, birth)
        return number

    def write_texts(self, purpose: int, texts: Sequence[str]) -> None:
        """Write those of the texts that are not written yet, if there is room; see ``texts``."""
        if purpose not in self._texts:
            page = self.entries(TEXTS, purpose)
            if not page:
                return
            self._texts[purpose] = EntryWriter.of_texts(self.page(page))
        writer = self._texts[purpose]
        # Where a time limit struck while a text was added, its entry stays empty: all others keep their numbers.
        for text in texts[writer.taken :]:
            writer.add(text)

    def replace_texts(self, purpose: int, texts: Mapping[int, str]) -> None:
        """Write other texts in the place of these numbers, where a page has them."""
        writer = self._texts.get(purpose)
        if writer is not None:
            for number, text in texts.items():
                writer.replace(number, text)

    def fold(self, block: PoolBlock, *, is_brief: bool = False) -> bool:
        """Add the counts of a pool that is gone to its totals and free its pages; False if there is no room.

        After a kill at any store, the counts are in the totals or in the block: the commit word says which.

        Args:
            block: of the pool.
            is_brief: the pool went with its engine after a few checkouts.
        """
        if self.is_adding:  # a thread is about to write into pages that would be another pool's by then
            return False
        now = self._wall()
        try:
            totals = self._totals_of(block.text)
        except SegmentError:
            return False
        with self.changing():
            self._add(totals, block, now)
            self._views(totals)[0][BRIEF] += is_brief
            if any(block.doubles[at] for at in USES):
                self._header[WAS_USED_WORD] = 1
            self._release(*block.own_pages)
        self._live[block.text] -= 1
        if self._live[block.text] <= 0:
            del self._live[block.text]
            self._ended.pop(block.text, None)
            self._ended[block.text] = now
        self.drop_old()
        return True

    def drop_old(self) -> None:
        """Drop the totals of names that no live pool has had for long, and the oldest of many such names."""
        now = self._wall()
        for ended, most in ((self._ended, MOST_ENDED), (self._resting, len(self._pages))):
            while ended:
                text, since = next(iter(ended.items()))
                if len(ended) <= most and now - since <= RETENTION_SECONDS:
                    break
                ended.pop(text, None)
                self._drop(text)

    def drop(self, text: bytes) -> None:
        """Drop the totals of a name, if no live pool has it."""
        if text not in self._live and text in self._totals:
            self._ended.pop(text, None)
            self._resting.pop(text, None)
            self._drop(text)

    def live(self, text: bytes) -> int:
        """Return how many live pools have this description."""
        return self._live[text]

    def totals(self) -> Iterator[Totals]:
        """Yield all totals. If ``changes`` is odd or another one afterwards, they are not to be trusted."""
        for text, number in list(self._totals.items()):
            words, doubles = self._views(number)
            copy = words[COMMIT] & 1
            first = COPIES_AT[copy]
            sites = sites_of(self.page(self._sites[number]), copy) if number in self._sites else []
            yield Totals(text, _list(doubles, first, first + COUNTS), doubles[ENDED], sites, words[BRIEF])

    # -- inside

    def _views(self, number: int) -> tuple[memoryview[int], memoryview[float]]:
        page = self.page(number)
        return page.cast("Q"), page.cast("d")

    def _totals_of(self, text: bytes) -> int:
        number = self._totals.get(text)
        if number is None:
            number = self._take()
            self._write(number, TOTALS, text)
            self._totals[text] = number
        return number

    def _add(self, number: int, block: PoolBlock, now: float) -> None:
        words, doubles = self._views(number)
        copy = words[COMMIT] & 1
        first, other = COPIES_AT[copy], COPIES_AT[1 - copy]
        counts = with_sites(
            _list(block.doubles, FIRST_COUNTER, FIELDS), are_off=bool(block.doubles[SITES_OFF])
        )
        self._add_sites(number, block, copy, counts)
        doubles[other : other + COUNTS] = memoryview(added(_list(doubles, first, first + COUNTS), counts))
        doubles[ENDED] = now
        words[COMMIT] = Commit(1 - copy, block.page, block.birth).word

    def _add_sites(self, number: int, block: PoolBlock, copy: int, counts: list[float]) -> None:
        """Write the sums of the sites to the copy that is not in use; ``counts`` gets those that find no room."""
        gone: dict[str, Sequence[float]] = {}
        for text, some in block.sites():
            gone[text] = added(gone[text], some).tolist() if text in gone else some
        if number not in self._sites:
            if not gone:
                return
            if page := self.entries(SITES, number):
                self._sites[number] = page
        if number in self._sites:
            memory = self.page(self._sites[number])
            doubles: Any = memory.cast("d")
            known = sites_of(memory, copy)
            writer = EntryWriter.of_sites(memory)
            for text in gone.keys() - {site.text for site in known}:
                if writer.add(text)[0]:
                    known.append(SiteCounts(text, [0.0] * SITE_COUNTS))
            for index, (text, some) in enumerate(known):
                at = ENTRIES_AT + index * SITE_DOUBLES + SITE_COPIES_AT[1 - copy]
                more = gone.pop(text, None)
                doubles[at : at + SITE_COUNTS] = array("d", some if more is None else added(some, more))
        first = OTHER_SITES - FIRST_COUNTER
        for some in gone.values():
            counts[first : first + SITE_COUNTS] = added(counts[first : first + SITE_COUNTS], some)

    def _drop(self, text: bytes) -> None:
        number = self._totals.pop(text, None)
        if number is not None:
            with self.changing():
                self._header[DROPS_WORD] += 1
                sites = self._sites.pop(number, None)
                self._release(number, *([] if sites is None else [sites]))

    # -- after another process

    def _take_over(self) -> None:
        """Fold the pools that the last process left, and find the totals and the free pages."""
        pools: list[tuple[int, bytes]] = []
        sites: dict[tuple[int, int], int] = {}
        ended: dict[bytes, float] = {}
        for number in reversed(range(1, len(self._pages))):
            words, doubles = self._views(number)
            if (number + 1) * PAGE_BYTES > self.used:
                self._free.append(number)
                continue
            kind = words[KIND]
            text = bytes(self.page(number)[TEXT_AT:DOUBLES_AT]).rstrip(b"\0")
            if kind == TOTALS and text not in self._totals:
                self._totals[text] = number
                words[BRIEF] = 0
                (self._resting if words[RESTING] else ended)[text] = doubles[ENDED]
            elif kind == POOL:
                pools.append((number, text))
            elif kind == SITES:
                sites[words[OWNER], words[OWNER_BIRTH]] = number
            else:
                self._release(number)
        for number in self._totals.values():
            if (number, 0) in sites:
                self._sites[number] = sites.pop((number, 0))
        for number, text in pools:
            block = PoolBlock(self, number, text)
            block.sites_page = sites.pop((number, block.birth), 0)
            self._fold_left(block)
            ended.pop(text, None)
        self._release(*sites.values())
        self._ended = dict(sorted(ended.items(), key=lambda item: item[1]))
        self._resting = dict(sorted(self._resting.items(), key=lambda item: item[1]))

    def _fold_left(self, block: PoolBlock) -> None:
        """Fold a pool that another process left in a page; if there is no room, only its counts stay."""
        now = self._wall()
        block.doubles[ACTIVE] = 0.0
        try:
            totals = self._totals_of(block.text)
        except SegmentError:
            return
        words, _ = self._views(totals)
        committed = Commit.of(words[COMMIT])
        if (committed.page, committed.birth) != (block.page, block.birth):
            self._add(totals, block, now)
        words[RESTING] = 1
        self._resting[block.text] = now
        self._release(*block.own_pages)


def _list(
    doubles: Any, begin: int, end: int
) -> list[float]:  # typeshed gives tolist() the type of memoryview[int]
    found: list[float] = doubles[begin:end].tolist()
    return found
