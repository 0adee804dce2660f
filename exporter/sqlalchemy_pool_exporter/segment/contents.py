# SPDX-License-Identifier: Apache-2.0
"""Reads what the pages of a file say; any damage raises one error."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.pausing import pause

from . import identity
from .block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    MAX_OVERFLOW,
    PAGE_BYTES,
    RECYCLE,
    ROW,
    SITES_OFF,
    SIZE,
    TIMEOUT,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from .block import ROWS as ROWS_IN_BLOCK
from .entries import Texts, sites_of, texts_of, with_sites
from .format import HEADER_BYTES
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
    SITES,
    TEXT_AT,
    TEXTS,
    TOTALS,
    Commit,
)
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .entries import SiteCounts
    from .identity import Description, Identity
    from .snapshot import Counts

# Fields that are NaN if a limit does not apply.
_LIMITS: Final = frozenset((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE))
# The fields of a block before its counters.
_STATE: Final = struct.Struct(f"={FIRST_COUNTER}d")
_HEAD: Final = struct.Struct("=QQQd")  # of a page
_COMMIT: Final = struct.Struct("=QdQQ")
_MOST_SECONDS: Final = 2.0**40  # of a Unix time
# Valid highest bytes of a count. That byte has the sign and most of the exponent. With one of these values the count is
# finite, not negative, and below 2**49, which is more than any process ever counts.
_HIGHEST_BYTES: Final = bytes(range(0x43))
# The same for the state, whose times can be negative.
_HIGHEST_SIGNED: Final = _HIGHEST_BYTES + bytes(range(0x80, 0xC3))
_MOST: Final = 2.0**49
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


def pools_of(data: bytes) -> Iterator[WorkerPool]:
    """Yield the pools in a file: the live ones, and the totals of those that are gone.

    Args:
        data: the file as far as it is in use.

    Raises:
        SegmentError: it is damaged.
    """
    found = _Found.of(data)
    folded: set[tuple[int, int]] = set()
    for begin in found.totals:
        pool, commit = _totals(data, begin, found.sites.get((begin // PAGE_BYTES, 0)))
        folded.add((commit.page, commit.birth))
        yield pool
    for begin, birth in found.pools.items():
        pause()
        owner = (begin // PAGE_BYTES, birth)
        if owner not in folded:
            described = identity.read(data[begin + TEXT_AT : begin + DOUBLES_AT])
            snapshot = _snapshot(data, begin + DOUBLES_AT, _sites(data, found.sites.get(owner), 0))
            for more in found.rows.get(owner, [])[:ROW_PAGES]:
                snapshot.connections.extend(more)
            yield WorkerPool(described.identity, described.info, snapshot)


class _Found(NamedTuple):
    """Where the pages of each kind begin; those that belong to another one by the page and birth of that one."""

    pools: dict[int, int]  # with the birth of each
    totals: list[int]
    rows: dict[tuple[int, int], list[array[float]]]
    sites: dict[tuple[int, int], int]

    @classmethod
    def of(cls, data: bytes) -> _Found:
        """Look at all pages."""
        found = cls({}, [], {}, {})
        for begin in range(HEADER_BYTES, len(data), PAGE_BYTES):
            pause()
            kind, first, second, used = _HEAD.unpack_from(data, begin)
            if kind == POOL:
                found.pools[begin] = first
            elif kind == TOTALS:
                found.totals.append(begin)
            elif kind == SITES:
                # A time limit of the application can leave an empty page beside the one that is used.
                if (first, second) not in found.sites or used:
                    found.sites[first, second] = begin
            elif kind == ROWS:
                found.rows.setdefault((first, second), []).append(_more_rows(data, begin, used))
            elif kind not in {FREE, TEXTS}:
                message = f"the page at byte {begin} is of an unknown kind"
                raise SegmentError(message)
        return found


def _sites(data: bytes, begin: int | None, copy: int) -> list[SiteCounts]:
    if begin is None:
        return []
    sites = sites_of(data[begin : begin + PAGE_BYTES], copy)
    # Comparisons with NaN are false.
    if not all(0.0 <= count < _MOST for site in sites for count in site.counts):
        raise SegmentError("a count that is no number")
    return sites


def texts_in(data: bytes) -> Texts:
    """Return the texts in a file; see ``pools_of()``."""
    found: dict[int, list[str]] = {}
    for begin in range(HEADER_BYTES, len(data), PAGE_BYTES):
        kind, purpose, _, _ = _HEAD.unpack_from(data, begin)
        if kind == TEXTS:
            texts = texts_of(data[begin : begin + PAGE_BYTES])
            # As with sites.
            if len(texts) > len(found.get(purpose, ())):
                found[purpose] = texts
    return Texts(*(found.get(purpose, []) for purpose in (HOLDERS, LABELS)))


def _totals(data: bytes, begin: int, sites: int | None) -> tuple[WorkerPool, Commit]:
    described = identity.read(data[begin + TEXT_AT : begin + DOUBLES_AT])
    word, ended, resting, brief = _COMMIT.unpack_from(data, begin + DOUBLES_AT)
    if not 0.0 <= ended < _MOST_SECONDS:
        raise SegmentError("a time that is no number")
    commit = Commit.of(word)
    counts = _counts(data, begin + 8 * COPIES_AT[commit.copy])
    pool = WorkerPool.of_totals(
        described,
        counts,
        ended,
        sites=_sites(data, sites, commit.copy),
        is_resting=bool(resting),
        brief=brief,
    )
    return pool, commit


def _more_rows(data: bytes, begin: int, used: float) -> array[float]:
    if not 0.0 <= used <= ROWS_PER_PAGE:
        raise SegmentError("tables of an impossible length")
    return _table(data, begin + 8 * ROWS_AT, int(used), ROW)


def _snapshot(data: bytes, begin: int, sites: list[SiteCounts]) -> Snapshot:
    fields = list(_STATE.unpack_from(data, begin))
    waiters, connections = fields[WAITERS_USED], fields[CONNECTIONS_USED]
    # Comparisons with NaN are false.
    if not (0.0 <= waiters <= WAITERS and 0.0 <= connections <= ROWS_IN_BLOCK):
        raise SegmentError("tables of an impossible length")
    # Only a limit that does not apply is NaN.
    if not all(
        abs(value) < _MOST or (math.isnan(value) and at in _LIMITS) for at, value in enumerate(fields)
    ):
        raise SegmentError("a state that is no number")
    return Snapshot(
        fields,
        _table(data, begin + 8 * WAITERS_AT, int(waiters), 1),
        _table(data, begin + 8 * CONNECTIONS_AT, int(connections), ROW),
        with_sites(_counts(data, begin + 8 * FIRST_COUNTER), are_off=bool(fields[SITES_OFF])),
        sites,
    )


def _counts(data: bytes, begin: int) -> array[float]:
    counts = data[begin : begin + 8 * COUNTS]
    if counts[_HIGHEST::8].translate(None, _HIGHEST_BYTES):
        raise SegmentError("a count that is no number")
    # An array makes no float objects until the counts are added up. Those were most of what a scrape allocated.
    return array("d", counts)


def _table(data: bytes, begin: int, rows: int, width: int) -> array[float]:
    """Return the rows of a table without the free rows at its end, which are zeros and most of the table."""
    size = 8 * width
    used = len(data[begin : begin + size * rows].rstrip(b"\0"))
    table = data[begin : begin + -(-used // size) * size]
    if table[_HIGHEST::8].translate(None, _HIGHEST_SIGNED):
        raise SegmentError("a time that is no number")
    return array("d", table)  # a list would take four times as much
