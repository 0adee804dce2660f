# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a pool now, in words, from its numbers alone.

An alert looks at minutes and this looks at a moment, so a condition can be there and gone before an alert fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.entries import OTHER
from sqlalchemy_pool_exporter.segment.stuck import STUCK_AFTER

from .causes import cause_of, where
from .failures import of_database
from .parts import limits_of
from .server_conditions import of_sessions
from .words import counted, duration, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_pool_exporter.held_connections import HeldConnection, ProbedServer
    from sqlalchemy_pool_exporter.segment.held import Held

    from .moment import Moment
    from .parts import Part
    from .schema import Condition, ConditionKind, Rates, Severity

# A caller that waits for less is on its way to a connection.
WAIT_SECONDS: Final = 0.1
# So long a caller waits for a pool that is not full only if connecting or a ping takes that long.
CONNECT_SECONDS: Final = 1.0
# A connection that is held for longer is worth a look, unless the pool has a ``leak_after`` of its own.
HELD_SECONDS: Final = 60.0
# So many connections of a process that are opened anew are said to be so together.
_TOGETHER: Final = 2

# So many processes of a pool are named in a condition of their own.
NAMED: Final = 3

_ORDER: Final[dict[Severity, int]] = {"critical": 0, "warning": 1, "info": 2}


def rank(severity: Severity | None) -> int:
    """Return the place of a severity in an order that has the worst first."""
    return len(_ORDER) if severity is None else _ORDER[severity]


def conditions(
    pool: str,
    parts: Sequence[Part],
    moment: Moment,
    records: Sequence[HeldConnection] = (),
    server: ProbedServer | None = None,
) -> list[Condition]:
    """Return what is wrong with a pool, the worst first.

    Args:
        pool: its label.
        parts: the pools of that name in each process.
        moment: when that was read.
        records: of its held connections, if a server is probed.
        server: to which it connects, if that is probed.
    """
    rates = moment.rates.get(pool)
    found = [
        *_of_parts(_Pool(parts, records, rates, moment.now, moment.wall)),
        *of_sessions(records),
        *of_database(server, limits_of(parts), rates, moment),
    ]
    found.sort(key=lambda one: rank(one[1]))
    return [
        {"kind": kind, "severity": severity, "pool": pool, "text": text} for kind, severity, text in found
    ]


_Found = tuple["ConditionKind", "Severity", str]


@dataclass(frozen=True, slots=True)
class _Pool:
    """All that is known of a pool at a moment."""

    parts: Sequence[Part]
    records: Sequence[HeldConnection]
    rates: Rates | None
    now: float
    wall: float

    def cause(self, part: Part, *kinds: str) -> str:
        """Return the likely cause, if the pool's numbers tell one of these kinds, or the server tells one."""
        records = [one for one in self.records if one.worker == part.worker.number]
        return cause_of(part, records, self.now, *kinds)

    def silence(self, part: Part) -> float:
        """Return for how long a part has returned nothing; if it never has, since its oldest checkout."""
        last = part.state["last_return"]
        held = part.state["longest_held_seconds"]
        return held if last is None else min(held, self.wall - last)

    def oldest(self, parts: Iterable[Part], *, names_worker: bool = False) -> str:
        """Return who has held a connection for longest."""
        part, first = min(
            ((part, one) for part in parts for one in part.held()), key=lambda pair: pair[1].since
        )
        texts = part.worker.texts
        known = ", ".join(filter(None, (texts.holder(first.holder), texts.label(first.label))))
        by = f"{first.site} ({known})" if known else first.site
        worker = f" in {_where(part)}" if names_worker else ""
        return f"the oldest is held for {duration(self.now - first.since)}, by {by}{worker}"


def _of_parts(pool: _Pool) -> Iterator[_Found]:
    waiting: dict[ConditionKind | None, list[Part]] = {}
    for part in pool.parts:
        if part.state["waiting"]:
            waiting.setdefault(_kind(part, pool), []).append(part)
    yield from _deadlocked(waiting.get("self_deadlock", []), pool.now)
    yield from _all_stuck(waiting.get("stuck", []), pool)
    if busy := waiting.get("waiting"):
        yield "waiting", "warning", _busy(busy, pool)
    if slow := waiting.get("slow_connect"):
        yield "slow_connect", "warning", _slow(slow, pool)
    others = [part for kind, some in waiting.items() if kind != "self_deadlock" for part in some]
    if nested := [(part, one) for part in others for one in part.held() if one.waits_since]:
        yield "nested", "warning", _nested(nested)
    if held_long := [part for part in pool.parts if part.state["longest_held_seconds"] > _too_long(part)]:
        yield "held_long", "warning", _held_long(held_long, pool)
    full = [
        part for part in pool.parts if part.is_full and not part.state["waiting"] and part.state["in_use"]
    ]
    if full:
        yield "full", "info", f"full: {_all_out(full, pool.parts)} in use, and nobody waits"


def _deadlocked(parts: list[Part], now: float) -> Iterator[_Found]:
    parts.sort(key=_by_wait)
    for part in parts[:NAMED]:
        yield "self_deadlock", "critical", _deadlock(part, now)
    if others := parts[NAMED:]:
        more = counted(len(others), "more worker")
        yield "self_deadlock", "critical", f"self-deadlock in {more}: {_waiting(others)}"


def _all_stuck(parts: list[Part], pool: _Pool) -> Iterator[_Found]:
    parts.sort(key=_by_wait)
    for part in parts[:NAMED]:
        yield "stuck", "critical", _stuck(part, pool)
    if others := parts[NAMED:]:
        more = counted(len(others), "more worker")
        oldest = pool.oldest(others, names_worker=True)
        yield "stuck", "critical", f"stuck: {more}; {_waiting(others)}; {oldest}"


def _by_wait(part: Part) -> float:
    return -part.state["longest_wait_seconds"]


def _kind(part: Part, pool: _Pool) -> ConditionKind | None:
    """Return why callers wait; None if they only just began to."""
    if part.is_deadlocked:
        return "self_deadlock"
    seconds = part.state["longest_wait_seconds"]
    if not part.is_full:
        return "slow_connect" if seconds >= CONNECT_SECONDS else None
    if seconds < WAIT_SECONDS:
        return None
    return "stuck" if pool.silence(part) >= STUCK_AFTER else "waiting"


def _where(part: Part) -> str:
    return where(part.worker.number, "" if part.process is None else part.process.pid)


def _deadlock(part: Part, now: float) -> str:
    waiting = [one for one in part.held() if one.waits_since]
    first = min(waiting, key=lambda one: one.waits_since)
    timeout = part.limits["timeout_seconds"]
    end = (
        "nothing ends that"
        if timeout is None
        else f"that ends when a checkout fails after {duration(timeout)}"
    )
    return (
        f"self-deadlock in {_where(part)}: the holders of all {number(len(waiting))} connections wait for another one "
        f"of this pool, the first for {duration(now - first.waits_since)}, at {_site(waiting)}; {end}"
    )


def _site(waiting: Iterable[Held]) -> str:
    """Return the site of the first of these holders; if that is not known, of the first whose site is known."""
    return min(waiting, key=lambda one: (one.site == OTHER, one.waits_since)).site


def _stuck(part: Part, pool: _Pool) -> str:
    cause = pool.cause(part, "loop_blocked", "leak")
    return (
        f"stuck: {_where(part)} has all {counted(part.state['in_use'], 'connection')} out and returned none for "
        f"{duration(pool.silence(part))}; {_waiting([part])}; {pool.oldest([part])}{cause}"
    )


def _busy(busy: Sequence[Part], pool: _Pool) -> str:
    first = min(busy, key=_by_wait)
    last = max(part.state["last_return"] or 0.0 for part in busy)
    silence = pool.wall - last
    returned = f"the last came back {duration(silence)} ago" if last else "none has come back yet"
    kinds = ("loop_blocked", "nested_checkouts", "connecting", "leak", "one_site", "slow", "busy")
    cause = pool.cause(first, *kinds)
    is_busy = last and silence < max(WAIT_SECONDS, first.state["longest_wait_seconds"])
    head = "busy" if is_busy else "slow"
    return f"{head}: {_waiting(busy)}; {_all_out(busy, pool.parts)} in use, and {returned}{cause}"


def _nested(holders: Sequence[tuple[Part, Held]]) -> str:
    part, _ = min(holders, key=lambda pair: pair[1].waits_since)
    site = _site([one for other, one in holders if other is part])
    waits = "a holder waits" if len(holders) == 1 else f"{number(len(holders))} holders wait"
    return (
        f"nested: {waits} for another connection of this pool, from {site} in {_where(part)}; when all holders "
        "do, none can go on"
    )


def _slow(slow: Sequence[Part], pool: _Pool) -> str:
    of = f" in {_where(slow[0])}" if len(slow) == 1 else ""
    return (
        f"slow to connect: {_waiting(slow)}{of}, although the pool is not full: "
        f"opening or testing a connection takes that long{_reopened(slow, pool)}"
    )


def _reopened(slow: Sequence[Part], pool: _Pool) -> str:
    """Return why several connections are opened anew at once, if they are."""
    empty = sum(part.state["empty_slots"] for part in slow)
    closes = {} if pool.rates is None else pool.rates["closes_by_reason"]
    reason = max(closes, key=lambda one: closes[one], default="")
    if empty < _TOGETHER or not reason or not closes[reason]:
        return ""
    recycle = slow[0].limits["recycle_seconds"]
    why = {
        "recycle": "they were opened together, and pool_recycle"
        + (f"={number(recycle)} s" if recycle is not None else "")
        + " ended them together",
        "ping_failed": "pre-ping found them dead",
        "error": "statements found them dead",
    }
    return (
        f"; likely cause: {number(empty)} connections are opened anew at once: {why[reason]}"
        if reason in why
        else ""
    )


def _held_long(parts: Sequence[Part], pool: _Pool) -> str:
    count = sum(pool.now - one.since > _too_long(part) for part in parts for one in part.held())
    are = "is" if count == 1 else "are"
    long = duration(min(map(_too_long, parts)))
    by_pool = " (leak_after)" if any(part.leak_after for part in parts) else ""
    return (
        f"held: {counted(count, 'connection')} {are} out for over {long}{by_pool}; "
        f"{pool.oldest(parts, names_worker=True)}"
    )


def _too_long(part: Part) -> float:
    """Return for how many seconds a connection may be held: the pool's ``leak_after``, if it has one."""
    return part.leak_after or HELD_SECONDS


def _waiting(parts: Sequence[Part]) -> str:
    count = sum(part.state["waiting"] for part in parts)
    longest = duration(max(part.state["longest_wait_seconds"] for part in parts))
    return (
        f"1 caller waits, for {longest}"
        if count == 1
        else f"{number(count)} callers wait, the first for {longest}"
    )


def _all_out(full: Sequence[Part], parts: Sequence[Part]) -> str:
    in_use = sum(part.state["in_use"] for part in full)
    if len(full) == 1:
        one_of = f", one of {number(len(parts))}," if len(parts) > 1 else ""
        connections = f"all {counted(in_use, 'connection')}" if in_use > 1 else "the only connection"
        return f"{connections} of {_where(full[0])}{one_of} {'are' if in_use > 1 else 'is'}"
    of = "all" if len(full) == len(parts) else f"{number(len(full))} of"
    return f"all {counted(in_use, 'connection')} of {of} {number(len(parts))} workers are"
