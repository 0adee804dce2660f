# SPDX-License-Identifier: Apache-2.0
"""The pages that the blocks of a process are in: in a segment file, or in memory.

All pages have the same length, so that any free page fits whatever is needed next. The first word says what is in it::

    FREE    nothing
    POOL    birth | description of the pool (JSON) | the block of a pool that lives
    ROWS    page and birth of a POOL | rows used | further rows of that pool's connections
    TOTALS  0     | description of the pools (JSON) | commit, ended, resting | two copies of the counts
    SITES   page and birth of a POOL, or page of a TOTALS and 0 | sites used | sites: text, two copies of their counts
    TEXTS   HOLDERS or LABELS | nothing | texts used | texts
    EXEMPLARS page and birth of a POOL | nothing | a slot for each bucket, see ``exemplars``

A totals page has the counts of all pools of one description that are gone. When another one goes, its counts are
*folded*: the writer adds them to the copy that is not in use, and then stores the commit word, which names both the
copy in use and the pool whose counts it has last. A reader ignores the counts of the pool that the commit word names.
So the sum of the two is right before and after that one store, wherever a kill strikes. The commit word also says which
copy is in use of the counts of the sites; those of a live pool are always in the first.
"""

from __future__ import annotations

from array import array
from math import inf, nextafter
from typing import TYPE_CHECKING, Final, NamedTuple

from .block import FIELDS, FIRST_COUNTER, PAGE_BYTES, ROW, SITE_COUNTS

if TYPE_CHECKING:
    from collections.abc import Sequence

FREE, POOL, ROWS, TOTALS, SITES, TEXTS, EXEMPLARS = range(7)
# Indexes into a page in words of eight bytes.
KIND, BIRTH = 0, 1
OWNER, OWNER_BIRTH, ROWS_USED, ROWS_AT = 1, 2, 3, 4
TEXT_AT: Final = 16  # in bytes
DOUBLES_AT: Final = 1024  # in bytes
TEXT_BYTES: Final = DOUBLES_AT - TEXT_AT
ROWS_PER_PAGE: Final = (PAGE_BYTES // 8 - ROWS_AT) // ROW
ROW_PAGES: Final = 512  # of one pool at most: for 65,000 connections, more than one address has ports
# Pages of sites and of texts are in doubles, too: how many entries are used, and the entries.
ENTRIES_USED, ENTRIES_AT = 3, 4
SITE_DOUBLES: Final = 26
SITE_TEXT_BYTES: Final = 112
SITE_COPIES_AT: Final = (SITE_TEXT_BYTES // 8, SITE_TEXT_BYTES // 8 + SITE_COUNTS)  # in an entry
SITES_PER_PAGE: Final = (PAGE_BYTES // 8 - ENTRIES_AT) // SITE_DOUBLES
TEXT_DOUBLES: Final = 8
HOLDERS, LABELS = 1, 2  # purposes of a page of texts
TEXTS_PER_PAGE: Final = (PAGE_BYTES // 8 - ENTRIES_AT) // TEXT_DOUBLES
COMMIT: Final = DOUBLES_AT // 8
ENDED: Final = COMMIT + 1  # Unix time at which the last pool went
RESTING: Final = COMMIT + 2  # 1 if a process ended with a pool like these, and no process has made one since
BRIEF: Final = COMMIT + 3  # how many of the pools, of the process that writes, went after a few checkouts
COUNTS: Final = FIELDS - FIRST_COUNTER
COPIES_AT: Final = (COMMIT + 8, COMMIT + 8 + COUNTS)
_PAGE_BITS: Final = 16


class Commit(NamedTuple):
    """The commit word of a totals page."""

    copy: int  # which copy of the counts is in use
    page: int  # where the pool was whose counts were added last, and which one it was
    birth: int

    @classmethod
    def of(cls, word: int) -> Commit:
        """Read a commit word."""
        return cls(word & 1, word >> 1 & (1 << _PAGE_BITS) - 1, word >> _PAGE_BITS + 1)

    @property
    def word(self) -> int:
        """The word."""
        return self.copy | self.page << 1 | self.birth << _PAGE_BITS + 1


def added(total: Sequence[float], counts: Sequence[float]) -> array[float]:
    """Return the sums of two rows of counts, each rounded up if it is not exact.

    A reader adds exactly and rounds once (see ``sums``). If a sum in the file were rounded down, what a reader shows
    could get smaller in its last digit, and Prometheus would take that for a restart.
    """
    return array("d", [a + b if not a or not b else _up(a, b) for a, b in zip(total, counts, strict=True)])


def _up(a: float, b: float) -> float:
    total = a + b
    # Knuth's error of a sum, which is exact.
    part = total - a
    return nextafter(total, inf) if (a - (total - part)) + (b - part) > 0.0 else total
