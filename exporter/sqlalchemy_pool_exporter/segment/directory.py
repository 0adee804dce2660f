# SPDX-License-Identifier: Apache-2.0
"""Reads all segments of a directory: which workers are live, what each counted, and the sums.

A file that cannot be read never fails the scrape: an error names it. The counts of its last successful read stay in the
sums, so that no counter goes backwards.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.metrics import SegmentErrorKind
from sqlalchemy_pool_exporter.pausing import pause

from .format import FILES, file_name
from .ledger import Ledger, View
from .own_errors import is_own
from .pages import RETENTION_SECONDS
from .reading_cy import OtherError, Remembered, read
from .trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from .identity import Identity
    from .ledger import CountsByLabels, Infos
    from .worker import Worker

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_NAMES: Final = {file_name(number): f"{number:03d}" for number in range(FILES)}
# Longer than the resolution of any file system's clock.
_CLOCK_RESOLUTION_NS: Final = 2_000_000_000

# Messages by (name of the file or directory, kind of error).
_Complaints = dict[tuple[str, SegmentErrorKind], str]


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers at one moment."""

    workers: tuple[Worker, ...]  # live and gone ones whose file could be read
    errors: dict[SegmentErrorKind, int]  # files that are left out
    view: View

    @property
    def labels(self) -> dict[Identity, str]:
        """The label of each pool that is shown."""
        return self.view.labels

    @property
    def counts(self) -> CountsByLabels:
        """Sums over all workers that ever ran."""
        return self.view.counts

    @property
    def infos(self) -> dict[str, Infos]:
        """By label, of live pools or the last ones known."""
        return self.view.infos

    @property
    def with_overflow(self) -> set[str]:
        """Labels of pools that can open connections beyond their size."""
        return self.view.with_overflow

    @property
    def running(self) -> tuple[Worker, ...]:
        """All whose process lives."""
        return tuple(worker for worker in self.workers if worker.is_live)

    @property
    def live(self) -> tuple[Worker, ...]:
        """The workers whose process lives, without parents: those do no work, and their limits are not used."""
        return tuple(worker for worker in self.running if not worker.is_parent)


class Found(NamedTuple):
    """What is in a directory, and what was in it."""

    workers: tuple[Worker, ...]  # those whose file could be read
    errors: dict[SegmentErrorKind, int]
    resting: list[Worker]  # all known ones that do not run

    @property
    def live(self) -> list[Worker]:
        """Those whose process lives."""
        return [worker for worker in self.workers if worker.is_live]


class _Stamp(NamedTuple):
    """File attributes that change when another process takes over, replaces or truncates a file."""

    device: int
    inode: int
    changed: int  # ctime in nanoseconds since the epoch
    bytes: int

    @property
    def is_reliable(self) -> bool:
        """Whether ctime is older than the clock's resolution, so that a change now would change it."""
        return time.time_ns() - self.changed > _CLOCK_RESOLUTION_NS


class Reader:
    """Reads a directory repeatedly, and remembers what must not be lost in between. Not thread-safe.

    Mutable state: the last contents of each file, deleted ones included, by the file's identity; the pages of those of
    live workers; the names of these; the stamp of each dead worker's file, which tells whether the file is unchanged;
    and the ledger of all of them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        retention: float = RETENTION_SECONDS,
        wall: Callable[[], float] = time.time,
        ledger: Ledger | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            directory: may be missing.
            retention: seconds for which a name is shown after its last pool.
            wall: Unix time.
            ledger: of several directories whose pools are shown together; by default one of this directory alone.
        """
        self.directory = directory
        self.ledger = ledger or Ledger(retention=retention, wall=wall)
        self._remembered = Remembered()
        self._known = self._remembered.workers
        self._untouched: dict[str, tuple[_Stamp, Worker]] = {}
        self._live: set[str] = set()
        self._complained: frozenset[tuple[str, SegmentErrorKind]] = frozenset()

    def read(self, *, per_worker: bool = False, beside: Collection[Identity] = ()) -> Fleet:
        """Return the workers and sums now. An unusable file never raises.

        Args:
            per_worker: return counts for each worker instead of sums over all workers.
            beside: pools that something else shows in the same scrape.
        """
        found = self.find()
        view = self.ledger.view(found.live, found.resting, per_worker=per_worker, beside=beside)
        return Fleet(found.workers, found.errors, view)

    def find(self) -> Found:
        """Read all files. An unusable file never raises."""
        complaints: _Complaints = {}
        present: dict[bytes, Worker] = {}
        listed = self._names(complaints)
        trust = Trust.of(self.directory)
        failed: set[str] = set()
        for name in listed or ():
            pause()
            try:
                worker = self._read(name, trust)
            except SegmentError as error:
                kind: SegmentErrorKind = error.kind if isinstance(error, OtherError) else "damaged"
                complaints[name, kind] = str(error)
                failed.add(_NAMES[name])
                continue
            if worker is not None and present.setdefault(worker.identity, worker) is not worker:
                complaints[name, "foreign"] = "a copy of another"
                if not present[worker.identity].is_live:
                    present[worker.identity] = worker
        for key, worker in present.items():
            if key in self._known:
                self.ledger.keep_what_is_lost(self._known[key], worker)
        self._known.update(present)
        for key in [
            key for key in self._remembered.contents if key not in present or not present[key].is_live
        ]:
            del self._remembered.contents[key]
        if listed is not None:
            self._forget(
                [w for key, w in self._known.items() if key not in present and w.number not in failed]
            )
        self._complain(complaints)
        errors = Counter(kind for _, kind in complaints)
        return Found(
            tuple(present.values()),
            {kind: errors[kind] for kind in get_args(SegmentErrorKind)},
            [w for w in self._known.values() if w.identity not in present or not w.is_live],
        )

    def _read(self, name: str, trust: Trust) -> Worker | None:
        """Read a file, unless it is a dead worker's and has not changed since it was read."""
        path = f"{self.directory}/{name}"
        # A live worker's file is read without a look at its stamp.
        stamp = None if name in self._live else _stamp(path)
        before, worker = self._untouched.get(name, (None, None))
        if worker is not None and stamp == before:
            return worker
        self._untouched.pop(name, None)
        worker = read(path, _NAMES[name], self._remembered, trust)
        if worker is not None and worker.is_live:
            self._live.add(name)
            return worker
        self._live.discard(name)
        # A new owner chmods the file once it has taken over, which changes ctime. Trust ctime only if it is older than
        # the clock's resolution.
        if worker is not None and stamp is not None and stamp.is_reliable:
            self._untouched[name] = (stamp, worker)
        return worker

    def _names(self, complaints: _Complaints) -> list[str] | None:
        try:
            return sorted(_NAMES.keys() & set(os.listdir(self.directory)))  # noqa: PTH208 - the names alone
        except OSError as error:
            if not is_own(error):
                raise
            complaints[str(self.directory), "unreadable"] = error.strerror or str(error)
            return None

    def _forget(self, deleted: list[Worker]) -> None:
        """Keep only sums of all but the last ``FILES`` deleted files, because each would take memory for ever."""
        self.ledger.keep(deleted[:-FILES])
        for worker in deleted[:-FILES]:
            del self._known[worker.identity]

    def _complain(self, complaints: _Complaints) -> None:
        """Log a problem when it begins, and not again at every scrape until it ends."""
        for (name, kind), what in complaints.items():
            if (name, kind) not in self._complained:
                _logger.warning("segment %s is left out: %s", name, what)
        self._complained = frozenset(complaints)


def is_directory(path: Path) -> bool:
    """Return whether there is a directory at ``path``; raise an OSError that says why if that cannot be known.

    From CPython 3.14 on, ``Path.is_dir()`` returns False then, and no message could say why.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the path has a NUL
        return False


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - a path of its own for each is slower
    except OSError as error:
        if not is_own(error):
            raise
        return None
    return _Stamp(status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
