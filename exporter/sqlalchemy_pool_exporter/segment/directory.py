# SPDX-License-Identifier: Apache-2.0
"""The segments of a directory, as a reader sees them: who lives, what each counted, and what they are together.

A file is read with ``pread`` and never mapped: one that shrinks while it is read is a short read here and would be the
end of the process there. Whatever is wrong with a file is one named error, and costs the scrape nothing else: what was
last read of it stays in the sums, so that no counter goes backwards.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import stat
import struct
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.metrics import SEGMENT_ERRORS

from . import block as segment
from .file import (
    DOUBLES_AT,
    FILE_BYTES,
    FILES,
    HEADER_BYTES,
    LAYOUT_VERSION,
    MAGIC,
    TEXT_AT,
    Header,
    blocks_in,
    file_name,
    is_held,
    is_unfinished,
    read_used,
)
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from .snapshot import Counts

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_INFO: Final = ("pool_class", "dialect", "driver")
_NAMES: Final = {file_name(number): f"{number:03d}" for number in range(FILES)}
# What open() says of a symbolic link and of a socket.
_FOREIGN_ERRORS: Final = (errno.ELOOP, errno.ENXIO)

# The fields of a block that come before what only grows.
_STATE: Final = struct.Struct(f"={segment.FIRST_COUNTER}d")
# What the highest byte of a count can be, and where it is: the sign and most of the exponent. With these it is a
# number, not negative, and below 2**49, which is more than any process ever counts.
_HIGHEST_BYTES: Final = bytes(range(0x43))
_HIGHEST: Final = 7 if sys.byteorder == "little" else 0

# No file system's clock is coarser.
_GRAIN_NS: Final = 2_000_000_000

# By the labels they are shown with: the pool, or the pool and the worker.
CountsByLabels = dict[tuple[str, ...], list[float]]
_RowsByLabels = dict[tuple[str, ...], "list[Counts]"]
# What is wrong with a file or the directory, by its name and the kind of error.
_Complaints = dict[tuple[str, str], str]


class _OtherError(SegmentError):
    """A file that cannot be read for another reason than that it is damaged."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class Block(NamedTuple):
    """What one worker says of one pool."""

    pool: str
    info: dict[str, str]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Worker:
    """What one file says."""

    number: str
    identity: bytes
    holders: int
    is_live: bool
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers at one moment."""

    workers: tuple[Worker, ...]  # of which a file was read, whether they live or not
    errors: dict[str, int]
    counts: CountsByLabels  # sums over all workers there ever were
    infos: dict[str, list[dict[str, str]]]  # what the live workers say of each pool, or said last
    with_overflow: set[str]  # pools to which that applies

    @property
    def live(self) -> tuple[Worker, ...]:
        """The workers whose process lives."""
        return tuple(worker for worker in self.workers if worker.is_live)


class _Stamp(NamedTuple):
    """What changes when a file is taken over, put in another's place, or cut."""

    device: int
    inode: int
    changed: int  # nanoseconds since the epoch
    bytes: int

    @property
    def is_old(self) -> bool:
        """Whether a change now would give it another time."""
        return time.time_ns() - self.changed > _GRAIN_NS


class Reader:
    """Reads the directory again and again, and remembers what must not be lost between.

    Mutable state: what was last read of each file, by its identity, which no other file gets, those that were deleted
    too; by which stamp a dead worker's file is seen to be untouched; the sums of such as were deleted long ago; and the
    sums over all in which nothing changed since the last time.
    Sums are kept as rows that have the same sum exactly, and are rounded once, when all are there: if the order in
    which they are added mattered, a sum of seconds could shrink by its last digit when a worker ends.
    Not for two threads at once.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[bytes, Worker] = {}
        self._untouched: dict[str, tuple[_Stamp, Worker]] = {}
        self._forgotten: _RowsByLabels = {}
        self._resting: tuple[object, _RowsByLabels] = (None, {})
        self._infos: dict[str, list[dict[str, str]]] = {}
        self._with_overflow: set[str] = set()
        self._complained: frozenset[tuple[str, str]] = frozenset()

    def read(self, *, per_worker: bool = False) -> Fleet:
        """Return what the files say now; counts are summed over workers, or not. Never raises on account of a file."""
        complaints: _Complaints = {}
        present: dict[bytes, Worker] = {}
        listed = self._names(complaints)
        failed: set[str] = set()
        for name in listed or ():
            try:
                worker = self._read(name)
            except SegmentError as error:
                complaints[name, getattr(error, "kind", "damaged")] = str(error)
                failed.add(_NAMES[name])
                continue
            if worker is not None and present.setdefault(worker.identity, worker) is not worker:
                complaints[name, "foreign"] = "a copy of another"
                if not present[worker.identity].is_live:
                    present[worker.identity] = worker
        self._known.update(present)
        if listed is not None:
            self._forget(
                [w for key, w in self._known.items() if key not in present and w.number not in failed]
            )
        self._learn_infos(present.values())
        self._complain(complaints)
        errors = Counter(kind for _, kind in complaints)
        return Fleet(
            tuple(present.values()),
            {kind: errors[kind] for kind in SEGMENT_ERRORS},
            self._counts(present, per_worker=per_worker),
            self._infos,
            self._with_overflow,
        )

    def _read(self, name: str) -> Worker | None:
        """Read a file, unless it is a dead worker's that nobody has touched since it was read."""
        path = f"{self.directory}/{name}"
        stamp = _stamp(path)
        before, worker = self._untouched.get(name, (None, None))
        if worker is not None and stamp == before:
            return worker
        self._untouched.pop(name, None)
        worker = _read(path, _NAMES[name], self._known)
        # Whoever takes a file over changes its mode first, and that changes its stamp: not within the grain of the
        # file system's clock, though, so a stamp is good once it is older than that.
        if worker is not None and not worker.is_live and stamp is not None and stamp.is_old:
            self._untouched[name] = (stamp, worker)
        return worker

    def _names(self, complaints: _Complaints) -> list[str] | None:
        try:
            return sorted(_NAMES.keys() & set(os.listdir(self.directory)))  # noqa: PTH208 - the names alone
        except OSError as error:
            complaints[str(self.directory), "unreadable"] = error.strerror or str(error)
            return None

    def _forget(self, deleted: list[Worker]) -> None:
        """Keep of all but the latest deleted files no more than their sums, or each would cost memory for ever."""
        for worker in deleted[:-FILES]:
            _add(self._forgotten, [worker], per_worker=True)
            del self._known[worker.identity]
        if deleted[:-FILES]:
            self._forgotten = _compacted(self._forgotten)

    def _learn_infos(self, workers: Iterable[Worker]) -> None:
        said: dict[str, list[dict[str, str]]] = {}
        for worker in workers:
            for block in worker.blocks:
                if block.snapshot.fields[segment.HAS_OVERFLOW]:
                    self._with_overflow.add(block.pool)
                if not (worker.is_live and block.snapshot.is_active):
                    self._infos.setdefault(block.pool, [block.info])
                elif block.info not in said.setdefault(block.pool, []):
                    said[block.pool].append(block.info)
        self._infos.update(said)

    def _counts(self, present: dict[bytes, Worker], *, per_worker: bool) -> CountsByLabels:
        # Who rests: who is gone, and whose file is deleted or cannot be read at the moment.
        moving = [worker for worker in present.values() if worker.is_live]
        resting = [w for w in self._known.values() if w.identity not in present or not w.is_live]
        # Workers that are the same objects are equal without being compared.
        if self._resting[0] != (per_worker, resting):
            rest: _RowsByLabels = {}
            for labels, rows in self._forgotten.items():
                rest.setdefault(labels if per_worker else labels[:1], []).extend(rows)
            _add(rest, resting, per_worker=per_worker)
            self._resting = ((per_worker, resting), _compacted(rest))
        every = {labels: list(rows) for labels, rows in self._resting[1].items()}
        _add(every, moving, per_worker=per_worker)
        return {labels: _total(rows) for labels, rows in every.items()}

    def _complain(self, complaints: _Complaints) -> None:
        """Log what is wrong when it begins, and not at every scrape until it ends."""
        for (name, kind), what in complaints.items():
            if (name, kind) not in self._complained:
                _logger.warning("segment %s is left out: %s", name, what)
        self._complained = frozenset(complaints)


def _add(every: _RowsByLabels, workers: Iterable[Worker], *, per_worker: bool) -> None:
    for worker in workers:
        for block in worker.blocks:
            labels = (block.pool, worker.number) if per_worker else (block.pool,)
            every.setdefault(labels, []).append(block.snapshot.counts)


def _total(rows: list[Counts]) -> list[float]:
    return list(rows[0]) if len(rows) == 1 else list(map(math.fsum, zip(*rows, strict=True)))


def _compacted(every: _RowsByLabels) -> _RowsByLabels:
    """Return few rows with exactly the same sums: the rounded one, what was rounded off of it, and so on."""
    compacted: _RowsByLabels = {}
    for labels, rows in every.items():
        left, few = list(rows), compacted.setdefault(labels, [])
        while any(total := _total(left)):
            few.append(total)
            left.append([-count for count in total])
        few[:] = few or rows[:1]
    return compacted


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - a path of its own for each is slower
    except OSError:
        return None
    return _Stamp(status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)


def _read(path: str, number: str, known: dict[bytes, Worker]) -> Worker | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None  # deleted a moment ago
    except OSError as error:
        kind = "foreign" if error.errno in _FOREIGN_ERRORS else "unreadable"
        raise _OtherError(kind, error.strerror or str(error)) from error
    try:
        return _read_open(descriptor, number, known)
    except OSError as error:
        raise _OtherError("unreadable", error.strerror or str(error)) from error
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, number: str, known: dict[bytes, Worker]) -> Worker | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _OtherError("foreign", "not a regular file")
    # In this order: whoever holds the lock after the header was read has counted himself in it or will, and so what
    # is remembered of him by this count of holders is looked at again.
    header = Header.read(descriptor)
    if is_unfinished(header, status.st_size):
        return None
    header = _checked(header)
    if status.st_size < header.used:
        raise SegmentError(f"{status.st_size} bytes where {header.used} are in use")
    is_live = is_held(descriptor)
    last = known.get(header.identity)
    if last is not None and not last.is_live and (last.number, last.holders) == (number, header.holders):
        # Nobody has written since; at most has the next holder not cleared the tables yet.
        return last
    used = _checked(Header.read(descriptor)).used
    blocks = tuple(_blocks(read_used(descriptor, used)))
    return Worker(number, header.identity, header.holders, is_live, blocks)


def _checked(header: Header | None) -> Header:
    if header is None:
        raise SegmentError("too short for a header")
    if header.magic != MAGIC:
        raise _OtherError("foreign", "not a segment of this project")
    if not header.is_known:
        what = f"layout {header.layout} with {header.fields} fields, this reader knows {LAYOUT_VERSION} with"
        raise _OtherError("version", f"{what} {segment.FIELDS}")
    if not HEADER_BYTES <= header.used <= FILE_BYTES:
        raise SegmentError("an impossible header")
    return header


def _blocks(data: bytes) -> Iterator[Block]:
    for at, rows in blocks_in(data):
        pool, info = _description(data[at + TEXT_AT : at + DOUBLES_AT])
        yield Block(pool, info, _snapshot(data, at + DOUBLES_AT, rows))


@lru_cache(FILES)
def _description(text: bytes) -> tuple[str, dict[str, str]]:
    try:
        said = json.loads(text.rstrip(b"\0"))
        pool, info = said["pool"], {key: said[key] for key in _INFO}
        "".join((pool, *info.values())).encode()
    # The last of them: brackets upon brackets.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SegmentError("the description of a pool is not readable") from error
    return pool, info


def _snapshot(data: bytes, begin: int, rows: int) -> Snapshot:
    fields = list(_STATE.unpack_from(data, begin))
    waiters, connections = fields[segment.WAITERS_USED], fields[segment.CONNECTIONS_USED]
    # Comparisons with NaN are false.
    if not (0.0 <= waiters <= segment.WAITERS and 0.0 <= connections <= rows):
        raise SegmentError("tables of an impossible length")
    return Snapshot(
        fields,
        _table(data, begin + 8 * segment.WAITERS_AT, int(waiters), 1),
        _table(data, begin + 8 * segment.CONNECTIONS_AT, int(connections), segment.ROW),
        _counts(data, begin),
    )


def _counts(data: bytes, begin: int) -> Counts:
    counts = data[begin + 8 * segment.FIRST_COUNTER : begin + 8 * segment.FIELDS]
    if counts[_HIGHEST::8].translate(None, _HIGHEST_BYTES):
        raise SegmentError("a count that is no number")
    # An array, and no floats before they are added up: those were most of what a scrape allocated.
    return array("d", counts)


def _table(data: bytes, begin: int, rows: int, width: int) -> list[float]:
    """Return the rows of a table but for the free ones at its end, which are nothing but zeros, and most of it."""
    size = 8 * width
    used = len(data[begin : begin + size * rows].rstrip(b"\0"))
    return array("d", data[begin : begin + -(-used // size) * size]).tolist()
