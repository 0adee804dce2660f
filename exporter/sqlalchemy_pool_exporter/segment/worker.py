# SPDX-License-Identifier: Apache-2.0
"""Reads one segment file; any damage raises one error that names it.

A file is read with ``pread()`` and never mapped. If the file shrinks meanwhile, ``pread()`` returns fewer bytes, while
an access to a mapping would kill the process.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
import sys
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.pausing import pause

from . import facts, identity
from .block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    FIELDS,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    MAX_OVERFLOW,
    PAGE_BYTES,
    RECYCLE,
    ROW,
    SIZE,
    TIMEOUT,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from .block import ROWS as ROWS_IN_BLOCK
from .format import (
    FACTS_AT,
    HEADER_BYTES,
    LAYOUT_VERSION,
    MAGIC,
    Header,
    is_unfinished,
    read_used,
)
from .lock import is_held
from .own_errors import is_own
from .page import (
    COPIES_AT,
    COUNTS,
    DOUBLES_AT,
    FREE,
    POOL,
    ROW_PAGES,
    ROWS,
    ROWS_AT,
    ROWS_PER_PAGE,
    TEXT_AT,
    TOTALS,
    Commit,
)
from .snapshot import Snapshot
from .trust import is_possible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy_pool_exporter.metrics import SegmentErrorKind

    from .facts import Facts
    from .identity import Description, Identity
    from .snapshot import Counts
    from .trust import Trust

# Errors of open() for a symbolic link and for a socket.
_FOREIGN_ERRORS: Final = (errno.ELOOP, errno.ENXIO)
# Fields that are NaN if a limit does not apply.
_LIMITS: Final = frozenset((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE))
# The fields of a block before its counters.
_STATE: Final = struct.Struct(f"={FIRST_COUNTER}d")
_HEAD: Final = struct.Struct("=QQQd")  # of a page
_COMMIT: Final = struct.Struct("=QdQ")
# A reader whose read overlapped a change reads again: at once, and then after these pauses in seconds. A writer changes
# for microseconds, unless it loses the processor meanwhile.
_PAUSES: Final = (0.0, 0.0, 0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)
_MOST_SECONDS: Final = 2.0**40  # of a Unix time
# Valid highest bytes of a count. That byte has the sign and most of the exponent. With one of these values the count is
# finite, not negative, and below 2**49, which is more than any process ever counts.
_HIGHEST_BYTES: Final = bytes(range(0x43))
# The same for the state, whose times can be negative.
_HIGHEST_SIGNED: Final = _HIGHEST_BYTES + bytes(range(0x80, 0xC3))
_MOST: Final = 2.0**49
_HIGHEST: Final = 7 if sys.byteorder == "little" else 0


class OtherError(SegmentError):
    """A file cannot be used although it is not damaged; ``kind`` says why."""

    def __init__(self, kind: SegmentErrorKind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class WorkerPool(NamedTuple):
    """One pool of one worker, or the totals of the pools of one description that are gone."""

    identity: Identity
    info: dict[str, str]
    snapshot: Snapshot
    ended: float | None = None  # of totals: the Unix time at which the last pool went
    is_resting: bool = False  # of totals: the last process ended with such a pool

    @classmethod
    def of_totals(
        cls, described: Description, counts: Counts, ended: float, *, is_resting: bool = False
    ) -> WorkerPool:
        """Return the totals of pools that are gone."""
        fields = [0.0] * FIRST_COUNTER
        fields[HAS_OVERFLOW] = float(described.has_overflow)
        snapshot = Snapshot(fields, [], [], counts)
        return cls(described.identity, described.info, snapshot, ended, is_resting)

    @property
    def name(self) -> str:
        """The name that the application gave, or the default name."""
        return self.identity.name


@dataclass(frozen=True, slots=True)
class Worker:
    """The contents of one segment file."""

    number: str
    identity: bytes  # random and unique to the file
    holders: int  # how many processes have written the file so far
    is_live: bool
    pools: tuple[WorkerPool, ...]
    facts: Facts
    has_forked: bool = False  # the process that writes the file forked another one
    was_used: bool = False  # that process used a pool that is gone
    drops: int = 0  # how many totals the file has lost so far

    @property
    def is_parent(self) -> bool:
        """Whether the process only started other ones: it has forked, and has never used a pool."""
        was_used = self.was_used or any(pool.snapshot.was_used for pool in self.pools)
        return self.has_forked and not was_used


def read(path: str, number: str, known: Mapping[bytes, Worker], trust: Trust) -> Worker | None:
    """Return the contents of a segment file, or None if the file was deleted or is still being made.

    Args:
        path: path of the file.
        number: number of the worker, from the name of the file.
        known: results of earlier reads, by the identity of the file.
        trust: whose files are believed.

    Raises:
        OtherError: the file cannot be read, or is not a segment of this layout.
        SegmentError: the file is damaged.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None  # deleted since the directory was listed
    except OSError as error:
        if not is_own(error):
            raise
        kind: SegmentErrorKind = "foreign" if error.errno in _FOREIGN_ERRORS else "unreadable"
        raise OtherError(kind, error.strerror or str(error)) from error
    try:
        return _read_open(descriptor, number, known, trust)
    except OSError as error:
        if not is_own(error):
            raise
        raise OtherError("unreadable", error.strerror or str(error)) from error
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, number: str, known: Mapping[bytes, Worker], trust: Trust) -> Worker | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OtherError("foreign", "not a regular file")
    if not trust.admits(status):
        raise OtherError(
            "foreign", f"it belongs to user {status.st_uid}, and the directory allows others only"
        )
    # Read the header before the lock is tested. A process that takes the lock after the test also adds itself to
    # ``holders`` after this read. So the next read sees another count and does not trust what this one remembers.
    header = Header.read(descriptor)
    if is_unfinished(header, status.st_size):
        return None
    header = _checked(header)
    if status.st_size < header.used:
        raise SegmentError(f"{status.st_size} bytes where {header.used} are in use")
    if not is_possible(status, header.used):
        raise SegmentError(f"{status.st_blocks} blocks on the disk where {header.used} bytes are in use")
    is_live = is_held(descriptor)
    last = known.get(header.identity)
    if last is not None and not last.is_live and (last.number, last.holders) == (number, header.holders):
        # Nothing was written since then. At most, a new holder has the lock and is about to take over.
        return last
    data, is_whole = _read_pages(descriptor, is_live=is_live)
    if not is_whole and last is not None:
        return last
    said = facts.read(data[FACTS_AT:HEADER_BYTES].rstrip(b"\0"))
    now = _checked(Header.of(data))
    return Worker(
        number,
        header.identity,
        header.holders,
        is_live,
        tuple(_pools(data)),
        said,
        has_forked=bool(now.has_forked),
        was_used=bool(now.was_used),
        drops=now.drops,
    )


def _read_pages(descriptor: int, *, is_live: bool) -> tuple[bytes, bool]:
    """Return the part of a file that is in use, and whether no counts moved during the read.

    What a dead writer left is right, whatever it was about to do: the commit words say so.
    """
    for seconds in _PAUSES:
        before = _checked(Header.read(descriptor))
        if not is_possible(os.fstat(descriptor), before.used):
            raise SegmentError(f"it grew to {before.used} bytes without taking them")
        data = read_used(descriptor, before.used)
        after = _checked(Header.read(descriptor))
        if before.changes == after.changes and not (before.changes & 1 and is_live):
            return data, True
        time.sleep(seconds)
    return data, False


def check(header: Header | None, data: bytes) -> Header:
    """Return the header of a file.

    Args:
        header: as read.
        data: the part of the file that is in use.

    Raises:
        SegmentError: a reader of the file would say so, too.
    """
    header = _checked(header)
    tuple(_pools(data))
    return header


def _checked(header: Header | None) -> Header:
    if header is None:
        raise SegmentError("too short for a header")
    if header.magic != MAGIC:
        raise OtherError("foreign", "not a segment of this project")
    if not header.is_known:
        what = f"layout {header.layout} with {header.fields} fields, this reader knows {LAYOUT_VERSION} with"
        raise OtherError("version", f"{what} {FIELDS}")
    if not header.is_possible:
        raise SegmentError("an impossible header")
    return header


def _pools(data: bytes) -> Iterator[WorkerPool]:
    pools: dict[int, int] = {}
    rows: dict[tuple[int, int], list[array[float]]] = {}
    folded: set[tuple[int, int]] = set()
    for begin in range(HEADER_BYTES, len(data), PAGE_BYTES):
        pause()
        kind, first, second, used = _HEAD.unpack_from(data, begin)
        if kind == POOL:
            pools[begin] = first
        elif kind == TOTALS:
            pool, commit = _totals(data, begin)
            folded.add((commit.page, commit.birth))
            yield pool
        elif kind == ROWS:
            rows.setdefault((first, second), []).append(_more_rows(data, begin, used))
        elif kind != FREE:
            message = f"the page at byte {begin} is of an unknown kind"
            raise SegmentError(message)
    for begin, birth in pools.items():
        pause()
        owner = (begin // PAGE_BYTES, birth)
        if owner not in folded:
            described = identity.read(data[begin + TEXT_AT : begin + DOUBLES_AT])
            snapshot = _snapshot(data, begin + DOUBLES_AT, ROWS_IN_BLOCK)
            for more in rows.get(owner, [])[:ROW_PAGES]:
                snapshot.connections.extend(more)
            yield WorkerPool(described.identity, described.info, snapshot)


def _totals(data: bytes, begin: int) -> tuple[WorkerPool, Commit]:
    described = identity.read(data[begin + TEXT_AT : begin + DOUBLES_AT])
    word, ended, resting = _COMMIT.unpack_from(data, begin + DOUBLES_AT)
    if not 0.0 <= ended < _MOST_SECONDS:
        raise SegmentError("a time that is no number")
    commit = Commit.of(word)
    counts = _counts(data, begin + 8 * COPIES_AT[commit.copy])
    return WorkerPool.of_totals(described, counts, ended, is_resting=bool(resting)), commit


def _more_rows(data: bytes, begin: int, used: float) -> array[float]:
    if not 0.0 <= used <= ROWS_PER_PAGE:
        raise SegmentError("tables of an impossible length")
    return _table(data, begin + 8 * ROWS_AT, int(used), ROW)


def _snapshot(data: bytes, begin: int, rows: int) -> Snapshot:
    fields = list(_STATE.unpack_from(data, begin))
    waiters, connections = fields[WAITERS_USED], fields[CONNECTIONS_USED]
    # Comparisons with NaN are false.
    if not (0.0 <= waiters <= WAITERS and 0.0 <= connections <= rows):
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
        _counts(data, begin + 8 * FIRST_COUNTER),
    )


def _counts(data: bytes, begin: int) -> Counts:
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
