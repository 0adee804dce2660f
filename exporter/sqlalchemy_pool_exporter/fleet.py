# SPDX-License-Identifier: Apache-2.0
"""The segments of a directory, as a reader sees them: who lives, what each counted, and what they are together.

A file is read with ``pread`` and never mapped: one that shrinks while it is read is a short read here and would be the
end of the process there. Whatever is wrong with a file is one named error, and costs the scrape nothing else: what was
last read of it stays in the sums, so that no counter goes backwards.
"""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import segment
from .catalogue import SEGMENT_ERRORS
from .errors import SegmentError
from .lease import (
    BLOCK_HEADER,
    DOUBLES_AT,
    FILE_BYTES,
    FILES,
    HEADER,
    HEADER_BYTES,
    LAYOUT_VERSION,
    MAGIC,
    TEXT_AT,
    is_held,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_INFO: Final = ("pool_class", "dialect", "driver")
_PREFIX: Final = "worker-"
_MOST_BLOCKS: Final = 4096

Counts = list[float]


class _FaultError(SegmentError):
    """A file that cannot be read, and which kind of fault that is."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Block:
    """What one worker says of one pool."""

    worker: str
    pool: str
    info: dict[str, str]
    copied: segment.Copy

    @property
    def counts(self) -> Counts:
        """The fields that only grow."""
        return self.copied.fields[segment.FIRST_COUNTER :]

    @property
    def is_active(self) -> bool:
        """Whether the worker has this pool now."""
        return bool(self.copied.fields[segment.ACTIVE])


@dataclass(frozen=True, slots=True)
class Worker:
    """What one file says."""

    number: str
    identity: bytes
    holders: int
    is_live: bool
    blocks: tuple[Block, ...]

    @property
    def state(self) -> tuple[bytes, int, bool]:
        """What is the same as long as a file that nobody holds says the same."""
        return self.identity, self.holders, self.is_live


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers at one moment."""

    workers: tuple[Worker, ...]  # those that are gone, too, and such whose file could not be read this time
    errors: dict[str, int]
    counts: dict[str, Counts]  # summed over all workers there ever were, by pool
    infos: dict[str, dict[str, str]]

    @property
    def live(self) -> tuple[Worker, ...]:
        """The workers whose process lives."""
        return tuple(worker for worker in self.workers if worker.is_live)


class Reader:
    """Reads the directory again and again, and remembers what must not be lost between.

    Mutable state: what was last read of each file, and the sum of those that are there no more.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._last: dict[str, Worker] = {}
        self._departed: dict[str, Counts] = {}
        self._resting: tuple[frozenset[tuple[str, bytes, int]], dict[str, Counts]] = (frozenset(), {})
        self._infos: dict[str, dict[str, str]] = {}
        self._complained: set[tuple[str, str]] = set()

    def read(self) -> Fleet:
        """Return what the files say now. Never raises on account of a file."""
        errors: Counter[str] = Counter()
        present: dict[str, Worker] = {}
        try:
            names = sorted(name for name in os.listdir(self.directory) if name.startswith(_PREFIX))
        except OSError as error:
            self._complain(str(self.directory), "unreadable", error.strerror or str(error))
            errors["unreadable"] += 1
            names = []
        for name in names[:FILES]:
            try:
                present[name] = _read(self.directory / name, self._last.get(name))
            except _FaultError as error:
                errors[error.kind] += 1
                self._complain(name, error.kind, str(error))
        return self._put_together(present, set(names), {kind: errors[kind] for kind in SEGMENT_ERRORS})

    def _put_together(self, present: dict[str, Worker], names: set[str], errors: dict[str, int]) -> Fleet:
        for name, last in list(self._last.items()):
            now = present.get(name)
            if (now is not None and now.identity != last.identity) or (now is None and name not in names):
                # Deleted, and perhaps made again: what it counted was counted.
                _add(self._departed, last.blocks)
                del self._last[name]
        self._last.update(present)
        for worker in present.values():
            for block in worker.blocks:
                if block.pool not in self._infos or block.is_active:
                    self._infos[block.pool] = block.info
        counts = {pool: list(sums) for pool, sums in self._at_rest(present).items()}
        for name, worker in self._last.items():
            if name not in present or worker.is_live:
                _add(counts, worker.blocks)
        return Fleet(tuple(self._last.values()), errors, counts, self._infos)

    def _at_rest(self, present: dict[str, Worker]) -> dict[str, Counts]:
        """Return the sums over the workers that are gone, added up anew only when one of them changed."""
        resting = {name: worker for name, worker in present.items() if not worker.is_live}
        key = frozenset((name, worker.identity, worker.holders) for name, worker in resting.items())
        if self._resting[0] != key or not self._resting[1]:
            sums = {pool: list(counts) for pool, counts in self._departed.items()}
            for worker in resting.values():
                _add(sums, worker.blocks)
            self._resting = (key, sums)
        return self._resting[1]

    def _complain(self, name: str, kind: str, what: str) -> None:
        if (name, kind) not in self._complained:
            self._complained.add((name, kind))
            _logger.warning("segment %s is left out: %s", name, what)


def _add(sums: dict[str, Counts], blocks: Iterable[Block]) -> None:
    for block in blocks:
        so_far = sums.get(block.pool)
        sums[block.pool] = block.counts if so_far is None else list(map(operator.add, so_far, block.counts))


def _read(path: Path, last: Worker | None) -> Worker:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _FaultError("unreadable", error.strerror or str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _FaultError("foreign", "not a regular file")
        return _read_open(descriptor, path.name.removeprefix(_PREFIX), last)
    except OSError as error:
        raise _FaultError("unreadable", error.strerror or str(error)) from error
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, number: str, last: Worker | None) -> Worker:
    is_live = is_held(descriptor)
    identity, holders, used, count = _header(os.pread(descriptor, HEADER.size, 0))
    if last is not None and not is_live and last.state == (identity, holders, False):
        return last  # nobody has written since
    data = os.pread(descriptor, used, 0)
    if len(data) < used:
        raise _FaultError("damaged", f"{len(data)} bytes where {used} are in use")
    return Worker(number, identity, holders, is_live, tuple(_blocks(memoryview(data), number, count)))


def _header(header: bytes) -> tuple[bytes, int, int, int]:
    if len(header) < HEADER.size:
        raise _FaultError("damaged", f"a header of {len(header)} bytes")
    magic, layout, fields, used, count, holders, identity = HEADER.unpack(header)
    if magic != MAGIC:
        raise _FaultError("foreign", "not a segment of this project")
    if (layout, fields) != (LAYOUT_VERSION, segment.FIELDS):
        raise _FaultError("version", f"layout {layout} with {fields} fields, this reader knows {LAYOUT_VERSION}")
    if not HEADER_BYTES <= used <= FILE_BYTES or count > _MOST_BLOCKS:
        raise _FaultError("damaged", "an impossible header")
    return identity, holders, used, count


def _blocks(data: memoryview[int], number: str, count: int) -> Iterator[Block]:
    at = HEADER_BYTES
    for _ in range(count):
        if at + DOUBLES_AT > len(data):
            raise _FaultError("damaged", "a block beyond the end")
        length, rows = BLOCK_HEADER.unpack_from(data, at)
        if length != DOUBLES_AT + 8 * segment.length(rows) or at + length > len(data):
            raise _FaultError("damaged", "a block of an impossible length")
        pool, info = _text(bytes(data[at + TEXT_AT : at + DOUBLES_AT]))
        doubles = data[at + DOUBLES_AT : at + length].cast("d")
        _check(doubles, rows)
        yield Block(number, pool, info, segment.copy(doubles))
        at += length


def _text(text: bytes) -> tuple[str, dict[str, str]]:
    try:
        said = json.loads(text.rstrip(b"\0"))
        pool, info = said["pool"], {key: said[key] for key in _INFO}
    except (ValueError, KeyError, TypeError) as error:
        raise _FaultError("damaged", "the description of a pool is not readable") from error
    if not pool or not all(isinstance(value, str) for value in (pool, *info.values())):
        raise _FaultError("damaged", "the description of a pool is not readable")
    return pool, info


def _check(doubles: memoryview[float], rows: int) -> None:
    counts = doubles[segment.FIRST_COUNTER : segment.FIELDS].tolist()
    waiters, connections = doubles[segment.WAITERS_USED], doubles[segment.CONNECTIONS_USED]
    # Comparisons with NaN are false.
    if not (min(counts) >= 0.0 and max(counts) < math.inf and not any(map(math.isnan, counts))):
        raise _FaultError("damaged", "a count that is no number")
    if not (0.0 <= waiters <= segment.WAITERS and 0.0 <= connections <= rows):
        raise _FaultError("damaged", "tables of an impossible length")
