# SPDX-License-Identifier: Apache-2.0
"""The report of a checkout that timed out: who has the connections, since when and from where, and why.

The caller copies the state of the pool, which takes half a millisecond, and a thread of its own logs it. So no handler
of the application's log can make the caller wait, raise into it or swallow a time limit that strikes meanwhile.
"""

from __future__ import annotations

import logging
import math
import os
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import MAX_OVERFLOW, SIZE, TIMEOUT, UNTRACKED_PENDING
from sqlalchemy_pool_exporter.segment.exhaustion import likely_cause
from sqlalchemy_pool_exporter.segment.held import held

from .stacks import activity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy_pool_exporter.segment.entries import Texts
    from sqlalchemy_pool_exporter.segment.held import Held
    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

    from .connection_row_cy import Holder
    from .faults import CountsFaults
    from .stacks import Activity

_logger = logging.getLogger("sqlalchemy_pool_exporter")

SECONDS: Final = 60.0  # between two reports of one pool
_NEVER: Final = -math.inf
_MOST_IN_MESSAGE: Final = 5  # sites
_MOST_IN_EXTRA: Final = 20
_COMPLETE: Final = frozenset(
    ("loop_blocked", "self_deadlock", "nested_checkouts")
)  # causes that say what the holders do


class Schedule:
    """When the next report of a pool is due.

    Mutable state: the time of the last one, whether it is still being logged, and what was not reported.
    """

    __slots__ = ("is_logging", "last", "suppressed")

    def __init__(self) -> None:
        self.last = _NEVER
        self.suppressed = 0
        self.is_logging = False  # a handler that never returns must not get one thread more each minute

    def due(self, now: float) -> int | None:
        """Return how many timeouts were not reported since the last report; None if this one is not, either."""
        # straight line: of two callers that time out at once, one reports
        suppressed = self.suppressed
        if now - self.last < SECONDS or self.is_logging:
            self.suppressed = suppressed + 1
            return None
        self.last = now
        self.suppressed = 0
        # end of straight line
        return suppressed


class TimedOut(NamedTuple):
    """A checkout that timed out, and the state of its pool then. Times are seconds of the recorder's clock."""

    snapshot: Snapshot
    began: float
    now: float
    site: str  # empty if it is not known
    holder: float  # the thread or task, see ``Texts.holder()``
    label: float
    suppressed: int
    leak_after: float
    names: Texts
    oldest: Holder | None = None  # who has held a connection for longest, if that is known
    prefixes: Sequence[str] = ()  # of the modules that are the application's, if it named any


def log(name: Callable[[], str], timed_out: TimedOut, schedule: Schedule, faults: CountsFaults) -> bool:
    """Log a report from a thread of its own; return False if there can be none.

    Args:
        name: returns the name of the pool.
        timed_out: what happened.
        schedule: of the reports of the pool.
        faults: counts what goes wrong in that thread.
    """
    if fork.forks_workers_in_c():
        return False
    # In the context of the caller, because filters of a log add what is in it, such as the id of a request.
    is_started = False
    schedule.is_logging = True
    try:
        is_started = fork.start_thread(
            copy_context().run,
            _log,
            name,
            timed_out,
            schedule,
            faults,
            name="sqlalchemy-pool-exporter report",
        )
    finally:
        if not is_started:
            schedule.is_logging = False
    return is_started


def _log(name: Callable[[], str], timed_out: TimedOut, schedule: Schedule, faults: CountsFaults) -> None:
    try:
        # At once: what the holder does is to be what it did when the checkout timed out.
        holder = timed_out.oldest
        oldest = None if holder is None else activity_of(holder, timed_out.prefixes)
        report = report_of(name(), timed_out, timed_out.names, oldest)
        _logger.warning("%s", message_of(report), extra={"pool_exhaustion": report})
    except Exception as error:  # noqa: BLE001 - nobody would see it in this thread
        faults.fault(error)
    finally:
        schedule.is_logging = False


def report_of(name: str, timed_out: TimedOut, names: Texts, oldest: Activity | None = None) -> dict[str, Any]:
    """Return the report as plain values that JSON has."""
    snapshot, now = timed_out.snapshot, timed_out.now
    out = sorted(held(snapshot), key=lambda one: one.since)
    cause = likely_cause(
        snapshot,
        now=now,
        since=timed_out.began,
        leak_after=timed_out.leak_after,
        oldest_does="" if oldest is None else oldest.kind,
    )
    waiting = [now - since for since in snapshot.waiters if since]
    by_site: dict[str, list[Held]] = {}
    for one in out:
        by_site.setdefault(one.site, []).append(one)
    groups = sorted(by_site.items(), key=lambda item: -len(item[1]))
    return {
        "pool": name,
        "pid": os.getpid(),
        "size": _number(snapshot.fields[SIZE]),
        "max_overflow": _number(snapshot.fields[MAX_OVERFLOW]),
        "timeout_seconds": _number(snapshot.fields[TIMEOUT]),
        "waited_seconds": round(now - timed_out.began, 3),
        "site": timed_out.site,
        "holder": names.holder(timed_out.holder),
        "label": names.label(timed_out.label),
        "in_use": len(out),
        "waiting": len(waiting) + int(snapshot.fields[UNTRACKED_PENDING]),
        "longest_waiting_seconds": round(max(waiting, default=0.0), 3),
        "held": [_group(site, some, now, names) for site, some in groups[:_MOST_IN_EXTRA]],
        "held_elsewhere": sum(len(some) for _, some in groups[_MOST_IN_EXTRA:]),
        "oldest_does": None if oldest is None else oldest.kind,
        "oldest_at": None if oldest is None else oldest.at,
        "cause": cause.kind,
        "reason": cause.words,
        "advice": cause.advice,
        "suppressed": timed_out.suppressed,
    }


def _group(site: str, some: Sequence[Held], now: float, names: Texts) -> dict[str, Any]:
    oldest = some[0]
    return {
        "site": site,
        "connections": len(some),
        "longest_seconds": round(max(0.0, now - oldest.since), 3),
        "holder": names.holder(oldest.holder),
        "label": names.label(oldest.label),
        "waiting_for_another": sum(one.waits_since > 0.0 for one in some),
    }


def _number(limit: float) -> float | None:
    return limit if math.isfinite(limit) else None


def message_of(report: dict[str, Any]) -> str:
    """Return the report as one line."""
    limits = [f"pid {report['pid']}"]
    limits += [f"{name}={report[name]:g}" for name in ("size", "max_overflow") if report[name] is not None]
    caller = f" at {report['site']}" if report["site"] else ""
    groups = [_words(group) for group in report["held"][:_MOST_IN_MESSAGE]]
    more = report["in_use"] - sum(group["connections"] for group in report["held"][:_MOST_IN_MESSAGE])
    if more:
        groups.append(f"{more} elsewhere")
    said = (
        f"pool {report['pool']!r} ({', '.join(limits)}) is exhausted: a checkout{caller}{_by(report)} timed out after "
        f"{report['waited_seconds']:g} s. {report['in_use']} connections are held{': ' if groups else ''}"
        f"{'; '.join(groups)}. {_waiting(report['waiting'])}"
        f"Likely cause: {report['cause']}: {report['reason']}"
    )
    if report["cause"] not in _COMPLETE and (more_said := does(report) or report["advice"]):
        said += f". {more_said}"
    if report["suppressed"]:
        said += f". {report['suppressed']} more checkouts timed out since the last report"
    return said


def _waiting(number: int) -> str:
    if not number:
        return ""
    return "1 more caller waits. " if number == 1 else f"{number} more callers wait. "


def does(report: dict[str, Any]) -> str:
    """Return what the holder of the oldest connection does, as a sentence; an empty text if that is not known."""
    at = f", in {report['oldest_at']}" if report["oldest_at"] else ""
    return {
        "database": f"The oldest waits for the database now{at}",
        "queue": f"The oldest waits for another connection{at}",
        "elsewhere": f"The oldest is not in the database now, but{at.removeprefix(',')}" if at else "",
        "ended": "The thread or task of the oldest has ended and did not return it",
    }.get(report["oldest_does"] or "", "")


def _words(group: dict[str, Any]) -> str:
    return f"{group['connections']} from {group['site']}, the oldest for {group['longest_seconds']:g} s{_by(group)}"


def _by(one: dict[str, Any]) -> str:
    known = [one[name] for name in ("holder", "label") if one[name]]
    return f" ({', '.join(known)})" if known else ""
