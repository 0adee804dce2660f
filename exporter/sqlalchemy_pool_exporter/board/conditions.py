# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a pool now, in words, from its numbers alone.

An alert looks at minutes and this looks at a moment, so a condition can be there and gone before an alert fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.exhaustion import likely_cause

from .words import counted, duration, number, rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_pool_exporter.held_connections import HeldConnection
    from sqlalchemy_pool_exporter.segment.held import Held

    from .moment import Moment
    from .parts import Part
    from .schema import Condition, ConditionKind, Rates, Severity

# A full pool that callers wait for, and that has returned nothing for so long, is stuck and not busy.
STUCK_SECONDS: Final = 30.0
# A caller that waits for less is on its way to a connection.
WAIT_SECONDS: Final = 0.1
# So long a caller waits for a pool that is not full only if connecting or a ping takes that long.
CONNECT_SECONDS: Final = 1.0
# A connection that is held for longer is worth a look, unless the pool has a ``leak_after`` of its own.
HELD_SECONDS: Final = 60.0
# A transaction that does nothing for so long while its connection is held waits for something else than the database.
IDLE_SECONDS: Final = 10.0

# So many processes of a pool are named in a condition of their own.
NAMED: Final = 3

_ORDER: Final[dict[Severity, int]] = {"critical": 0, "warning": 1, "info": 2}


def rank(severity: Severity | None) -> int:
    """Return the place of a severity in an order that has the worst first."""
    return len(_ORDER) if severity is None else _ORDER[severity]


def conditions(
    pool: str, parts: Sequence[Part], moment: Moment, records: Sequence[HeldConnection] = ()
) -> list[Condition]:
    """Return what is wrong with a pool, the worst first.

    Args:
        pool: its label.
        parts: the pools of that name in each process.
        moment: when that was read.
        records: of its held connections, if a server is probed.
    """
    found = [
        *_of_parts(parts, moment.now, moment.wall),
        *_of_server(records),
        *_of_rates(moment.rates.get(pool)),
    ]
    found.sort(key=lambda one: rank(one[1]))
    return [
        {"kind": kind, "severity": severity, "pool": pool, "text": text} for kind, severity, text in found
    ]


_Found = tuple["ConditionKind", "Severity", str]


def _of_parts(parts: Sequence[Part], now: float, wall: float) -> Iterator[_Found]:
    waiting: dict[ConditionKind | None, list[Part]] = {}
    for part in parts:
        if part.state["waiting"]:
            waiting.setdefault(_kind(part, wall), []).append(part)
    yield from _deadlocked(waiting.get("self_deadlock", []), now)
    yield from _all_stuck(waiting.get("stuck", []), now, wall)
    if busy := waiting.get("waiting"):
        yield "waiting", "warning", _busy(busy, parts, now, wall)
    if slow := waiting.get("slow_connect"):
        yield "slow_connect", "warning", _slow(slow)
    others = [part for kind, some in waiting.items() if kind != "self_deadlock" for part in some]
    if nested := [one for part in others for one in part.held() if one.waits_since]:
        yield "nested", "warning", _nested(nested)
    if held_long := [part for part in parts if part.state["longest_held_seconds"] > _too_long(part)]:
        yield "held_long", "warning", _held_long(held_long, now)
    full = [part for part in parts if part.is_full and not part.state["waiting"] and part.state["in_use"]]
    if full:
        yield "full", "info", f"full: {_all_out(full, parts)} in use, and nobody waits"


def _deadlocked(parts: list[Part], now: float) -> Iterator[_Found]:
    parts.sort(key=_by_wait)
    for part in parts[:NAMED]:
        yield "self_deadlock", "critical", _deadlock(part, now)
    if others := parts[NAMED:]:
        more = counted(len(others), "more worker")
        yield "self_deadlock", "critical", f"self-deadlock in {more}: {_waiting(others)}"


def _all_stuck(parts: list[Part], now: float, wall: float) -> Iterator[_Found]:
    parts.sort(key=_by_wait)
    for part in parts[:NAMED]:
        yield "stuck", "critical", _stuck(part, now, wall)
    if others := parts[NAMED:]:
        more = counted(len(others), "more worker")
        yield "stuck", "critical", f"stuck: {more}; {_waiting(others)}; {_oldest(others, now)}"


def _by_wait(part: Part) -> float:
    return -part.state["longest_wait_seconds"]


def _kind(part: Part, wall: float) -> ConditionKind | None:
    """Return why callers wait; None if they only just began to."""
    if part.is_deadlocked:
        return "self_deadlock"
    seconds = part.state["longest_wait_seconds"]
    if not part.is_full:
        return "slow_connect" if seconds >= CONNECT_SECONDS else None
    if seconds < WAIT_SECONDS:
        return None
    return "stuck" if _silence(part, wall) >= STUCK_SECONDS else "waiting"


def _silence(part: Part, wall: float) -> float:
    """Return for how long the pool has returned nothing; if it never has, since its oldest checkout."""
    last = part.state["last_return"]
    held = part.state["longest_held_seconds"]
    return held if last is None else min(held, wall - last)


def _where(part: Part) -> str:
    pid = "" if part.process is None else f" (pid {part.process.pid})"
    return f"worker {part.worker.number}{pid}"


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
        f"of this pool, the first for {duration(now - first.waits_since)}, at {first.site}; {end}"
    )


def _stuck(part: Part, now: float, wall: float) -> str:
    state, cause = part.state, _cause(part, now, "loop_blocked", "leak")
    return (
        f"stuck: {_where(part)} has all {counted(state['in_use'], 'connection')} out and returned none for "
        f"{duration(_silence(part, wall))}; {_waiting([part])}; {_oldest([part], now)}{cause}"
    )


def _busy(busy: Sequence[Part], parts: Sequence[Part], now: float, wall: float) -> str:
    last = max(part.state["last_return"] or 0.0 for part in busy)
    returned = f"the last came back {duration(wall - last)} ago" if last else "none has come back yet"
    kinds = ("loop_blocked", "nested_checkouts", "connecting", "leak", "one_site", "slow")
    cause = _cause(min(busy, key=_by_wait), now, *kinds)
    return f"busy: {_waiting(busy)}; {_all_out(busy, parts)} in use, and {returned}{cause}"


def _cause(part: Part, now: float, *kinds: str) -> str:
    """Return the likely cause as the report of an exhausted pool has it, if it is one of these kinds."""
    since = now - part.state["longest_wait_seconds"]
    fullest = max(part.snapshots, key=lambda snapshot: sum(map(bool, snapshot.waiters)))
    cause = likely_cause(fullest, now=now, since=since)
    return f"; likely cause: {cause.words}" if cause.kind in kinds else ""


def _nested(holders: Sequence[Held]) -> str:
    first = min(holders, key=lambda one: one.waits_since)
    who = "a holder waits" if len(holders) == 1 else f"{number(len(holders))} holders wait"
    return f"nested: {who} for another connection of this pool, from {first.site}; when all holders do, none can go on"


def _slow(slow: Sequence[Part]) -> str:
    return (
        f"slow to connect: {_waiting(slow)}, although the pool is not full: "
        "opening or testing a connection takes that long"
    )


def _held_long(parts: Sequence[Part], now: float) -> str:
    count = sum(now - one.since > _too_long(part) for part in parts for one in part.held())
    are = "is" if count == 1 else "are"
    seconds = min(map(_too_long, parts))
    return (
        f"held: {counted(count, 'connection')} {are} out for over {duration(seconds)}; {_oldest(parts, now)}"
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
    connections = counted(sum(part.state["in_use"] for part in full), "connection")
    if len(parts) == 1:
        return f"all {connections} are" if full[0].state["in_use"] > 1 else "the only connection is"
    of = "all" if len(full) == len(parts) else f"{number(len(full))} of"
    return f"all {connections} of {of} {number(len(parts))} workers are"


def _oldest(parts: Iterable[Part], now: float) -> str:
    first = min((one for part in parts for one in part.held()), key=lambda one: one.since)
    return f"the oldest is held for {duration(now - first.since)}, by {first.site}"


def _of_server(records: Sequence[HeldConnection]) -> Iterator[_Found]:
    blocked = [one for one in records if one.server_state == "waiting_for_lock"]
    if blocked:
        first = max(blocked, key=lambda one: one.state_seconds or 0.0)
        wait = "connection waits" if len(blocked) == 1 else "connections wait"
        seconds = "" if first.state_seconds is None else f" for {duration(first.state_seconds)}"
        text = f"blocked: {number(len(blocked))} {wait} for a lock, {first.site}{seconds}{_blocker(first)}"
        yield "blocked", "warning", text
    idle = [
        one
        for one in records
        if one.server_state == "idle_in_transaction" and (one.state_seconds or 0.0) >= IDLE_SECONDS
    ]
    if idle:
        first = max(idle, key=lambda one: one.state_seconds or 0.0)
        text = (
            f"idle in transaction: {counted(len(idle), 'connection')} {'is' if len(idle) == 1 else 'are'} held with a "
            f"transaction that does nothing, the first for {duration(first.state_seconds or 0.0)}, by {first.site}"
        )
        yield "idle_in_transaction", "warning", text


def _blocker(one: HeldConnection) -> str:
    if not one.blocked_by:
        return ""
    first = one.blocked_by[0]
    if not first.server_pid:
        return "; a prepared transaction has it"
    state = "" if first.state == "unknown" else f", {first.state.replace('_', ' ')}"
    if not first.pool:
        application = f" of {first.application!r}" if first.application else ""
        return f"; session {first.server_pid}{application} has it{state}"
    site = first.site or "idle in its pool"
    return f"; {site} in worker {first.worker} (pid {first.pid}) has it{state}, as session {first.server_pid}"


def _of_rates(rates: Rates | None) -> Iterator[_Found]:
    if rates is None:
        return
    if rates["checkout_timeouts"]:
        text = f"timeouts: {rate(rates['checkout_timeouts'])} checkouts fail because pool_timeout passed"
        yield "timeouts", "critical", text
    if rates["connect_errors"]:
        yield (
            "connect_errors",
            "critical",
            f"no connection: {rate(rates['connect_errors'])} attempts to connect fail",
        )
    if rates["leaked_checkouts"]:
        text = f"leaked: {rate(rates['leaked_checkouts'])} checkouts are not returned; the garbage collector finds them"
        yield "leaked", "warning", text
