# SPDX-License-Identifier: Apache-2.0
"""Connections that are held for longer than ``leak_after``: each is suspected of a leak, logged and counted.

One thread of the process looks at the table of each pool a few times per ``leak_after``. So nothing is added to a
checkout. The thread begins when the first connection opens, because a process that only forks workers should have no
thread, and ends when no pool has a connection.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sqlalchemy_pool_exporter.segment import fork, texts
from sqlalchemy_pool_exporter.segment.block import HELD_SINCE, LABEL, SERVER_PID
from sqlalchemy_pool_exporter.segment.entries import OTHER, SUSPECTED
from sqlalchemy_pool_exporter.segment.server_process import unpacked

from .stacks import activity_of, stack_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow, Holder
    from .connection_table import ConnectionTable
    from .origins_cy import Origins

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_LOOKS: Final = 4  # per leak_after
_SECONDS: Final = (0.01, 15.0)  # between two looks, at least and at most
_NAP: Final = 1.0  # after so many seconds the thread notices a pool that is to be looked at earlier


class LeakOptions(NamedTuple):
    """What ``instrument()`` was asked for."""

    after: float  # seconds
    with_stack: bool


class Watched(Protocol):
    """The part of a recorder that is needed here."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""

    @property
    def connections(self) -> ConnectionTable:
        """The table."""

    @property
    def origins(self) -> Origins | None:
        """Where checkouts come from; None if that is not recorded."""

    @property
    def storage(self) -> PoolBlock:
        """The pages of the pool."""

    @property
    def name(self) -> Callable[[], str]:
        """Returns the name of the pool."""

    @property
    def is_ended(self) -> bool:
        """Whether the pool is gone, or no longer instrumented."""

    def fault(self, error: BaseException) -> bool:
        """Count a fault."""


class _Suspect(NamedTuple):
    row: ConnectionRow
    since: float
    report: dict[str, Any]


class Suspects:
    """The suspects of one pool. Mutable state: those that are known, by the id of their row."""

    __slots__ = ("_known", "options")

    def __init__(self, options: LeakOptions) -> None:
        self.options = options
        self._known: dict[int, _Suspect] = {}

    def look(self, recorder: Watched) -> None:
        """Count and log new suspects, and log those that came back."""
        now = recorder.clock()
        for key, suspect in list(self._known.items()):
            if suspect.row.held_since != suspect.since:
                del self._known[key]
                _log_return(suspect, now)
        for suspect in self._new(recorder, now):
            self._known[id(suspect.row)] = suspect
            _log_suspect(suspect)

    def _new(self, recorder: Watched, now: float) -> Iterator[_Suspect]:
        for row in recorder.connections.rows():
            since = row.held_since
            if not since or now - abs(since) <= self.options.after or id(row) in self._known:
                continue
            site, holder = row.site, row.holder
            report = self._report(recorder, row, site, holder, now - abs(since))
            if _counted(recorder, row, since, site or recorder.storage.other_sites):
                yield _Suspect(row, since, report)

    def _report(
        self,
        recorder: Watched,
        row: ConnectionRow,
        site: SiteEntry | None,
        holder: Holder | None,
        held: float,
    ) -> dict[str, Any]:
        names = texts.own()
        first = row.held_at - HELD_SINCE
        known = recorder.storage.sites()
        report: dict[str, Any] = {
            "pool": recorder.name(),
            "pid": os.getpid(),
            "site": known[site.number - 1].text if site is not None and site.number else OTHER,
            "held_seconds": round(held, 3),
            "leak_after_seconds": self.options.after,
            "holder": names.holder(holder.number) if holder is not None else "",
            "label": names.label(row.table[first + LABEL]),
            "server_pid": unpacked(row.table[first + SERVER_PID]).pid or None,
            "does": None,
            "at": None,
        }
        if holder is not None:
            report["does"], report["at"] = activity_of(
                holder, () if recorder.origins is None else recorder.origins.prefixes
            )
        if self.options.with_stack:
            report["stack"] = stack_of(holder) if holder is not None else []
        return report


def _counted(recorder: Watched, row: ConnectionRow, since: float, site: SiteEntry) -> bool:
    """Count a suspect, unless what was read of it may be of its next checkout, or its pool ends."""
    counts, at = site.table, site.at + SUSPECTED
    # straight line: when a pool ends its counts are folded, and another pool gets their place
    if row.table[row.held_at] != since or recorder.is_ended:
        return False
    counts[at] += 1.0
    # end of straight line
    return True


def _log_suspect(suspect: _Suspect) -> None:
    report = suspect.report
    _logger.warning(
        "a connection of pool %r (pid %d) is held for %.3g s, longer than leak_after=%g: from %s%s%s%s",
        report["pool"],
        report["pid"],
        report["held_seconds"],
        report["leak_after_seconds"],
        report["site"],
        _by(report),
        _does(report),
        "".join(f"\n    {line}" for line in report.get("stack", [])),
        extra={"pool_leak": report},
    )


def _log_return(suspect: _Suspect, now: float) -> None:
    report = suspect.report | {"held_seconds": round(now - abs(suspect.since), 3)}
    for name in ("stack", "does", "at"):
        report.pop(name, None)
    _logger.info(
        "the connection of pool %r (pid %d) from %s%s that was suspected of a leak is no longer held, after about "
        "%.3g s",
        report["pool"],
        report["pid"],
        report["site"],
        _by(report),
        report["held_seconds"],
        extra={"pool_leak_ended": report},
    )


def _does(report: dict[str, Any]) -> str:
    """Return what the holder does, and which process of the server serves the connection, as far as it is known."""
    at = f" in {report['at']}" if report["at"] else ""
    does = {
        "database": f"it waits for the database{at}",
        "queue": f"it waits for another connection{at}",
        "elsewhere": f"it is{at}, not in the database" if at else "",
        "ended": "that has ended and did not return it",
    }.get(report["does"] or "", "")
    session = f"session {report['server_pid']} of the server" if report["server_pid"] else ""
    known = "; ".join(filter(None, (does, session)))
    return f"; {known}" if known else ""


def _by(report: dict[str, Any]) -> str:
    known = [report[name] for name in ("holder", "label") if report[name]]
    return f" ({', '.join(known)})" if known else ""


class _Watch:
    """The thread that looks.

    Mutable state: the pools, whether one of them is new to the thread, whether the thread runs, and whether forks are
    watched.
    """

    def __init__(self) -> None:
        self.pools: dict[int, tuple[weakref.ref[Any], Suspects]] = {}
        self.has_new = False
        self.is_running = False
        self.watches_forks = False

    def begin(self, recorder: Watched, suspects: Suspects) -> None:
        """Look at a pool that has a connection."""
        self.pools[id(recorder)] = (weakref.ref(recorder), suspects)
        self.has_new = True
        self.run()

    def run(self) -> None:
        """Begin the thread, if it does not run and may."""
        if not self.watches_forks:
            self.watches_forks = True
            fork.call_in_child(self._leave_parent)
            fork.call_in_worker(self._begin_in_worker)
        if self.is_running or fork.forks_workers_in_c() or self._take():
            return
        if not fork.start_thread(self._run, name="sqlalchemy-pool-exporter leaks"):
            self.is_running = False

    def _take(self) -> bool:
        # straight line: two connections that open at once begin one thread
        was_running = self.is_running
        self.is_running = True
        # end of straight line
        return was_running

    def _run(self) -> None:
        try:
            while (seconds := self._look()) is not None or not self._ends():
                self._sleep(seconds or _SECONDS[0])
        except BaseException:  # of a handler of the log, which can raise SystemExit
            self.is_running = False  # the next connection that opens begins another thread
            raise

    def _sleep(self, seconds: float) -> None:
        """Sleep until the next look is due, or until a pool has a connection that may have a shorter ``leak_after``."""
        while seconds > 0.0 and not self.has_new:
            time.sleep(min(seconds, _NAP))
            seconds -= _NAP

    def _ends(self) -> bool:
        self.is_running = False
        # A connection may have opened in between, before which this thread seemed to run.
        return not list(self._needed()) or self._take()

    def _look(self) -> float | None:
        """Look at all pools; return the seconds until the next look, or None if no pool needs one."""
        self.has_new = False  # before the look: a pool that comes meanwhile gets the next one
        seconds = []
        for recorder, suspects in self._needed():
            seconds.append(min(max(suspects.options.after / _LOOKS, _SECONDS[0]), _SECONDS[1]))
            try:
                suspects.look(recorder)
            except Exception as error:  # noqa: BLE001 - one odd pool does not end the thread
                recorder.fault(error)
        return min(seconds, default=None)

    def _needed(self) -> Iterator[tuple[Watched, Suspects]]:
        for key, (reference, suspects) in list(self.pools.items()):
            recorder = reference()
            if recorder is None or recorder.is_ended:
                self.pools.pop(key, None)
            elif recorder.connections.by_id:
                yield recorder, suspects

    def _leave_parent(self) -> None:
        """In a forked child, which has no thread and no connection."""
        self.pools.clear()
        self.is_running = False

    def _begin_in_worker(self) -> None:
        if list(self._needed()):
            self.run()


WATCH: Final = _Watch()
