# SPDX-License-Identifier: Apache-2.0
"""The rules of the audit: each says what it finds, how bad that is, why, and what to do.

``docs/audit.md`` is made from this table. A rule finds nothing if a fact that it needs is not known: a false finding is
worse than none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from .facts import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy_pool_exporter.held_connections import ProbedServer
    from sqlalchemy_pool_exporter.segment.directory import Fleet

    from .facts import PoolFacts

FindingSeverity = Literal["warning", "info"]

# Of max_connections, what pools should leave for deployments, in which old and new processes overlap, and for people.
RESERVE: Final = 0.1
SHORT_RECYCLE_SECONDS: Final = 300.0
CONNECTS_PER_SECOND: Final = 5.0
BRIEF_ENGINES: Final = 20
# Dialects of servers that always close idle sessions after some time: MySQL's wait_timeout cannot be switched off.
ALWAYS_CUT: Final = frozenset(("mysql", "mariadb"))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``find`` returns what is wrong with a pool, or None."""

    name: str
    severity: FindingSeverity
    summary: str  # when it is found
    needs_server: bool  # whether only a sidecar that probes the database knows the facts
    why: str
    remedy: str
    find: Callable[[PoolFacts], str | None]


class Found(NamedTuple):
    """A finding."""

    rule: Rule
    pool: str
    text: str


def _no_liveness_check(facts: PoolFacts) -> str | None:
    if not any(map(math.isnan, facts.recycles_without_ping)):
        return None
    limit = _idle_limit(facts)
    if limit is not None:
        return f"neither pool_pre_ping nor pool_recycle, and the server ends sessions that are idle for {limit:g} s"
    if facts.dialects and facts.dialects <= ALWAYS_CUT:
        return "neither pool_pre_ping nor pool_recycle, and the server ends sessions that are idle for wait_timeout"
    return None


def _recycle_above_idle_limit(facts: PoolFacts) -> str | None:
    limit = _idle_limit(facts)
    if limit is None:
        return None
    # Comparisons with NaN are false: that is for the rule before this one.
    longest = max((one for one in facts.recycles_without_ping if one >= limit), default=None)
    return (
        None if longest is None else f"pool_recycle is {longest:g} s, and the server's idle limit {limit:g} s"
    )


def _recycle_short(facts: PoolFacts) -> str | None:
    shortest = min((one for one in facts.recycles if one < SHORT_RECYCLE_SECONDS), default=None)
    if shortest is None:
        return None
    limit = _idle_limit(facts)
    if limit is not None and limit <= SHORT_RECYCLE_SECONDS:
        return None  # it has to be so short
    return f"pool_recycle is {shortest:g} s"


def _too_many_connections(facts: PoolFacts) -> str | None:
    server = facts.server
    if server is None or server.limits.is_behind_pooler:
        return None
    capacity, most = server.capacity, server.limits.connections
    if capacity <= most * (1.0 - RESERVE):
        return None
    pools = "this pool" if len(server.pools) == 1 else f"{len(server.pools)} pools"
    more = " or more" if server.has_unlimited else ""
    return (
        f"{pools} can open {capacity:.0f} connections{more} in all processes, and the server has {most} for them: "
        f"more than {1.0 - RESERVE:.0%}"
    )


def _timeout_beyond_deadline(facts: PoolFacts) -> str | None:
    beyond = facts.timeouts_beyond_deadline
    if not beyond:
        return None
    timeout, deadline = max(beyond)
    return f"pool_timeout is {timeout:g} s, and a request has {deadline:g} s"


def _null_pool_connects(facts: PoolFacts) -> str | None:
    # Behind a pooler, NullPool is right. Without a probe it is not known whether there is one.
    if facts.classes != {"NullPool"} or facts.server is None or facts.server.limits.is_behind_pooler:
        return None
    rate = facts.connects_per_second
    return f"NullPool opens {rate:.3g} connections a second" if rate >= CONNECTS_PER_SECOND else None


def _sync_engine_in_loop(facts: PoolFacts) -> str | None:
    if not facts.was_used_in_a_loop:
        return None
    return "a synchronous engine is used in a task of an event loop, which stands still meanwhile"


def _pool_below_threads(facts: PoolFacts) -> str | None:
    beyond = facts.threads_beyond_capacity
    if not beyond:
        return None
    threads, capacity = max(beyond)
    return f"{threads:.0f} threads of a process asked at one moment, and its pool can open {capacity:.0f} connections"


def _engine_per_request(facts: PoolFacts) -> str | None:
    if facts.most_brief < BRIEF_ENGINES:
        return None
    return (
        f"a process has made and dropped {facts.most_brief} engines of this name, each after a few checkouts"
    )


def _idle_limit(facts: PoolFacts) -> float | None:
    server = facts.server
    return None if server is None else server.limits.idle_session_timeout_seconds


RULES: Final = (
    Rule(
        name="no_liveness_check",
        severity="warning",
        summary="Neither `pool_pre_ping` nor `pool_recycle`, and the server ends idle sessions: its "
        "`idle_session_timeout` is on. MySQL and MariaDB always do, by `wait_timeout`, so these need no probe.",
        needs_server=True,
        why="After a quiet time the pool hands out connections that the server has closed, and the first statement of "
        "each fails.",
        remedy="Set `pool_pre_ping=True`, or a `pool_recycle` that is shorter than the server's limit.",
        find=_no_liveness_check,
    ),
    Rule(
        name="recycle_above_idle_limit",
        severity="warning",
        summary="`pool_recycle` is not shorter than the server's `idle_session_timeout` (MySQL's `wait_timeout`), "
        "without `pool_pre_ping`.",
        needs_server=True,
        why="The server closes a connection before the pool replaces it, so its next statement fails.",
        remedy="Set `pool_recycle` to less than the limit, or `pool_pre_ping=True`.",
        find=_recycle_above_idle_limit,
    ),
    Rule(
        name="recycle_short",
        severity="info",
        summary="`pool_recycle` is under 300 s, and the server's idle limit is not known to ask for that.",
        needs_server=False,
        why="Connections are replaced all the time. Those of one start are replaced together, and checkouts wait for "
        "that.",
        remedy="Use `pool_pre_ping=True` against dead connections, and a `pool_recycle` of 30 minutes or more.",
        find=_recycle_short,
    ),
    Rule(
        name="too_many_connections",
        severity="warning",
        summary="All pools on a server can together open more than 90 % of the connections that it has for ordinary "
        "roles. Pools without a limit, such as a `NullPool`, are left out of the sum. The sidecar knows the pools of "
        "its host alone. Behind a connection pooler nothing is found.",
        needs_server=True,
        why="Under load the server refuses connections, to everybody. The rest is for deployments, in which old and "
        "new processes overlap, and for people.",
        remedy="Lower `pool_size`, `max_overflow` or the number of processes, put a connection pooler before the "
        "server, or raise `max_connections`.",
        find=_too_many_connections,
    ),
    Rule(
        name="timeout_beyond_deadline",
        severity="warning",
        summary="`pool_timeout` is not shorter than the deadline of a request, which "
        "`instrument(request_deadline=…)` or `SQLALCHEMY_POOL_EXPORTER_REQUEST_DEADLINE` tells.",
        needs_server=False,
        why="A request still waits for a connection after its client has given up, and takes the place of one that "
        "could be answered.",
        remedy="Set `pool_timeout` to a part of the deadline, for example a third, so that there is time for the work.",
        find=_timeout_beyond_deadline,
    ),
    Rule(
        name="null_pool_connects",
        severity="warning",
        summary="`NullPool` opens 5 connections a second or more, on average since the pools were made, and no "
        "connection pooler is before the server.",
        needs_server=True,
        why="Each checkout waits for a new connection, and each connection costs the server a process.",
        remedy="Use a `QueuePool` (asyncio: `AsyncAdaptedQueuePool`), or put a connection pooler before the server.",
        find=_null_pool_connects,
    ),
    Rule(
        name="sync_engine_in_loop",
        severity="warning",
        summary="A task of a running event loop checks out of a synchronous engine. The first 50 tasks of a process do "
        "not count: they start the application. Nor do tasks that have a name. With `sites=False` nothing is found.",
        needs_server=False,
        why="Each statement blocks the loop, and with it all other requests of the process.",
        remedy="Use `create_async_engine()`, or call the code in a thread: `asyncio.to_thread()`, or a `def` endpoint.",
        find=_sync_engine_in_loop,
    ),
    Rule(
        name="pool_below_threads",
        severity="info",
        summary="More threads of a process have asked for a connection at one moment than its pool can open, overflow "
        "included. Of asyncio engines, and with gevent or eventlet, nothing is found.",
        needs_server=False,
        why="The server accepts more requests than can have a connection, so some wait for others.",
        remedy="Let `pool_size` be the number of threads of the server, if the database has room for that in all "
        "processes; else give the server fewer threads.",
        find=_pool_below_threads,
    ),
    Rule(
        name="engine_per_request",
        severity="warning",
        summary="A process has made and dropped 20 engines of one name, each with less than 10 checkouts, the last of "
        "them within ten minutes.",
        needs_server=False,
        why="An engine has a pool of its own, so nothing is pooled: each request connects anew, and no limit holds.",
        remedy="Make one engine when the process starts, and sessions or connections of it for each request.",
        find=_engine_per_request,
    ),
)


def audit(fleet: Fleet, servers: Iterable[ProbedServer] = (), *, now: float, wall: float) -> Iterator[Found]:
    """Yield what the rules find; arguments as of ``facts_of()``."""
    for facts in facts_of(fleet, servers, now=now, wall=wall):
        for rule in RULES:
            text = rule.find(facts)
            if text is not None:
                yield Found(rule, facts.pool, text)
