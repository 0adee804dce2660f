# SPDX-License-Identifier: Apache-2.0
"""Reads one segment file; any damage raises one error that names it.

A file is read with ``pread()`` and never mapped. If the file shrinks meanwhile, ``pread()`` returns fewer bytes, while
an access to a mapping would kill the process.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import struct
import sys
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.metrics import INFO_LABELS

from . import facts
from .block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    FIELDS,
    FIRST_COUNTER,
    MAX_OVERFLOW,
    MOST_ROWS,
    RECYCLE,
    ROW,
    SIZE,
    TIMEOUT,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from .format import (
    DOUBLES_AT,
    FACTS_AT,
    FILE_BYTES,
    FILES,
    HEADER,
    HEADER_BYTES,
    LAYOUT_VERSION,
    MAGIC,
    TEXT_AT,
    Header,
    blocks_in,
    is_unfinished,
    read_used,
)
from .lock import is_held
from .snapshot import Snapshot
from .trust import is_possible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy_pool_exporter.metrics import SegmentErrorKind

    from .facts import Facts
    from .snapshot import Counts
    from .trust import Trust

# Errors of open() for a symbolic link and for a socket.
_FOREIGN_ERRORS: Final = (errno.ELOOP, errno.ENXIO)
# Fields that are NaN if a limit does not apply.
_LIMITS: Final = frozenset((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE))
# The fields of a block before its counters.
_STATE: Final = struct.Struct(f"={FIRST_COUNTER}d")
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
    """One pool of one worker."""

    name: str
    info: dict[str, str]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Worker:
    """The contents of one segment file."""

    number: str
    identity: bytes  # random and unique to the file
    holders: int  # how many processes have written the file so far
    is_live: bool
    pools: tuple[WorkerPool, ...]
    facts: Facts
    has_forked: bool  # the process that writes the file forked another one

    @property
    def is_parent(self) -> bool:
        """Whether the process only started other ones: it has forked, and has not used any of its pools."""
        return self.has_forked and not any(pool.snapshot.was_used for pool in self.pools)


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
        kind: SegmentErrorKind = "foreign" if error.errno in _FOREIGN_ERRORS else "unreadable"
        raise OtherError(kind, error.strerror or str(error)) from error
    try:
        return _read_open(descriptor, number, known, trust)
    except OSError as error:
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
        # Nothing was written since then. At most, a new holder has the lock and is about to clear the tables.
        return last
    used = _checked(Header.read(descriptor)).used
    if not is_possible(os.fstat(descriptor), used):
        raise SegmentError(f"it grew to {used} bytes without taking them")
    data = read_used(descriptor, used)
    said = facts.read(data[FACTS_AT:HEADER_BYTES].rstrip(b"\0"))
    has_forked = bool(Header._make(HEADER.unpack_from(data)).has_forked)
    return Worker(
        number, header.identity, header.holders, is_live, tuple(_pools(data)), said, has_forked=has_forked
    )


def _checked(header: Header | None) -> Header:
    if header is None:
        raise SegmentError("too short for a header")
    if header.magic != MAGIC:
        raise OtherError("foreign", "not a segment of this project")
    if not header.is_known:
        what = f"layout {header.layout} with {header.fields} fields, this reader knows {LAYOUT_VERSION} with"
        raise OtherError("version", f"{what} {FIELDS}")
    if not HEADER_BYTES <= header.used <= FILE_BYTES:
        raise SegmentError("an impossible header")
    return header


def _pools(data: bytes) -> Iterator[WorkerPool]:
    for at, rows in blocks_in(data):
        if rows > MOST_ROWS:
            raise SegmentError("a table longer than a writer makes")
        name, info = _description(data[at + TEXT_AT : at + DOUBLES_AT])
        yield WorkerPool(name, info, _snapshot(data, at + DOUBLES_AT, rows))


@lru_cache(FILES)
def _description(text: bytes) -> tuple[str, dict[str, str]]:
    try:
        said = json.loads(text.rstrip(b"\0"))
        pool, info = said["pool"], {key: said[key] for key in INFO_LABELS}
        "".join((pool, *info.values())).encode()
    # RecursionError: thousands of nested brackets.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SegmentError("the description of a pool is not readable") from error
    return pool, info


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
        _counts(data, begin),
    )


def _counts(data: bytes, begin: int) -> Counts:
    counts = data[begin + 8 * FIRST_COUNTER : begin + 8 * FIELDS]
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
