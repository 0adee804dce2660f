# SPDX-License-Identifier: Apache-2.0
"""Why callers wait: the likely cause, from the pool's own numbers and from what the database server says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.entries import OTHER
from sqlalchemy_pool_exporter.segment.exhaustion import likely_cause

from .words import duration, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_pool_exporter.held_connections import Blocker, HeldConnection

    from .parts import Part

# What lasts for less in the server is not why callers wait, nor what lasts for less than half of their wait.
_LEAST_SECONDS: Final = 0.5
# The pool is sure of these by itself. Of a leak it is not: a slow statement is also held for longer than usual.
_SURE: Final = frozenset(("loop_blocked", "self_deadlock", "nested_checkouts", "connecting"))


def cause_of(part: Part, records: Sequence[HeldConnection], now: float, *kinds: str) -> str:
    """Return why callers of a part wait, or an empty text.

    Args:
        part: whose callers wait.
        records: of its held connections, if a server is probed.
        now: seconds of ``time.monotonic()``.
        kinds: the causes that are worth a word here, of those that the pool's own numbers tell.
    """
    since = now - part.state["longest_wait_seconds"]
    fullest = max(part.snapshots, key=lambda snapshot: sum(map(bool, snapshot.waiters)))
    of_pool = likely_cause(fullest, now=now, since=since)
    words = of_pool.words if of_pool.kind in kinds else ""
    if of_pool.kind not in _SURE:
        least = max(_LEAST_SECONDS, part.state["longest_wait_seconds"] / 2)
        idle = _while_idle(part, records, least)
        if idle and of_pool.kind == "leak" and words:
            words += f"; {idle}"
        elif idle:
            words = f"connections are held while the application does something else: {idle}"
        words = _in_server(part, records, least) or words
    return f"; likely cause: {words}" if words else ""


def _in_server(part: Part, records: Sequence[HeldConnection], least: float) -> str:
    """Return what the server does for at least half of the connections, for so many seconds."""
    locked = _most(part, [one for one in records if one.server_state == "waiting_for_lock"], least)
    if locked:
        first = max(locked, key=_state_seconds)
        return f"a lock: {_of(locked, part)} wait for one, {_longest(locked)}{blocker(first)}"
    active = _most(part, [one for one in records if one.server_state == "active"], least)
    if active:
        return f"slow statements: {_of(active, part)} run one, {_longest(active)}"
    return ""


def _while_idle(part: Part, records: Sequence[HeldConnection], least: float) -> str:
    """Return for which connections the server has had nothing to do for so many seconds, if it is at least half."""
    idle = _most(part, [one for one in records if one.server_state in {"idle_in_transaction", "idle"}], least)
    if not idle:
        return ""
    first = max(idle, key=_state_seconds)
    return f"{_of(idle, part)} are {first.server_state.replace('_', ' ')}, {_longest(idle)}"


def _most(part: Part, some: Sequence[HeldConnection], least: float) -> list[HeldConnection]:
    long = [one for one in some if _state_seconds(one) + (one.asked_seconds_ago or 0.0) >= least]
    return long if long and 2 * len(long) >= part.state["in_use"] else []


def _state_seconds(one: HeldConnection) -> float:
    return one.state_seconds or 0.0


def _of(some: Sequence[HeldConnection], part: Part) -> str:
    return f"{number(len(some))} of {number(part.state['in_use'])} connections"


def _longest(some: Sequence[HeldConnection]) -> str:
    first = max(some, key=_state_seconds)
    # The first checkouts of a pool have no site of their own, if it was hardly in use.
    named = max(some, key=lambda one: (one.site != OTHER, _state_seconds(one)))
    which = "from" if named is first else "another one from"
    return f"the longest for {duration(_state_seconds(first))}, {which} {who(named)}"


def who(one: HeldConnection) -> str:
    """Return the site of a connection, and its thread or task and label if they are known."""
    known = ", ".join(filter(None, (one.holder, one.label)))
    return f"{one.site} ({known})" if known else one.site


def where(worker: str, pid: str) -> str:
    """Return which process it is."""
    return f"worker {worker} (pid {pid})" if pid else f"worker {worker}"


def blocker(one: HeldConnection) -> str:
    """Return who has the lock for which a connection waits; an empty text if that is not known."""
    return f"; {_has_it(one.blocked_by[0])}" if one.blocked_by else ""


def _has_it(first: Blocker) -> str:
    if not first.server_pid:
        return "a prepared transaction has it"
    state = "" if first.state == "unknown" else f", {first.state.replace('_', ' ')}"
    if not first.pool:
        application = f" of {first.application!r}" if first.application else ""
        return f"session {first.server_pid}{application} has it{state}"
    site = first.site or "idle in its pool"
    return f"{site} in {where(first.worker, first.pid)} has it{state}, as session {first.server_pid}"
