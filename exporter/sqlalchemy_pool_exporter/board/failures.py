# SPDX-License-Identifier: Apache-2.0
"""What fails in the seconds before a moment, and what the probe of the database knows of its cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .words import duration, number, rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_pool_exporter.held_connections import ProbedServer, ServerHealth

    from .moment import Moment
    from .schema import ConditionKind, Limits, Rates, Severity

# So long after its start it is said that a server was restarted.
RESTARTED_SECONDS: Final = 60.0

_Found = tuple["ConditionKind", "Severity", str]


def of_database(
    server: ProbedServer | None, limits: Limits | None, rates: Rates | None, moment: Moment
) -> Iterator[_Found]:
    """Yield what is wrong with the server of a pool, and what fails.

    Args:
        server: to which the pool connects, if it is probed.
        limits: of the pool; None if no process has it.
        rates: of the pool, if they are known.
        moment: when that was read.
    """
    health = None if server is None else server.health
    name = "" if server is None else f"database {server.database!r}"
    if health is not None and limits is not None:
        yield from _of_server(name, health, rates, moment)
    if rates is not None:
        yield from _of_rates(server, limits, rates)


def _of_server(name: str, health: ServerHealth, rates: Rates | None, moment: Moment) -> Iterator[_Found]:
    if health.failure:
        seconds = duration(max(0.0, moment.now - health.failing_since))
        yield (
            "database_down",
            "critical",
            f"no answer: {name} has not answered for {seconds}: {health.failure}",
        )
        return
    age = moment.wall - health.started_at
    is_new = bool(health.started_at) and age < RESTARTED_SECONDS
    if health.refuses_writes:
        why = (
            "it is in recovery, as a replica is"
            if health.is_in_recovery
            else f"{health.read_only_setting} is on"
        )
        since = f"; it started {duration(max(0.0, age))} ago" if is_new else ""
        failing = _failing(rates)
        yield (
            "read_only",
            "critical",
            f"read-only: the server of {name} takes no writes: {why}{since}{failing}",
        )
    elif is_new:
        text = f"restarted: the server of {name} started {duration(max(0.0, age))} ago{_failing(rates)}"
        yield "database_restarted", "info", text


def _failing(rates: Rates | None) -> str:
    failing = 0.0 if rates is None else rates["errors"]["statement"]
    return f"; {rate(failing)} statements fail" if failing else ""


def _of_rates(server: ProbedServer | None, limits: Limits | None, rates: Rates) -> Iterator[_Found]:
    if rates["checkout_timeouts"]:
        text = f"timeouts: {rate(rates['checkout_timeouts'])} checkouts fail because pool_timeout passed"
        yield "timeouts", "critical", text
    if rates["connect_errors"]:
        failure = "" if server is None or server.health is None else server.health.failure
        why = f"; database {server.database!r}: {failure}" if server is not None and failure else ""
        yield (
            "connect_errors",
            "critical",
            f"no connection: {rate(rates['connect_errors'])} attempts to connect fail{why}",
        )
    dead = {kind: rates["closes_by_reason"].get(kind, 0.0) for kind in ("ping_failed", "error")}
    if any(dead.values()):
        yield "dead_connections", "warning", _dead(dead, server, limits)
    if rates["leaked_checkouts"]:
        text = f"leaked: {rate(rates['leaked_checkouts'])} checkouts are not returned; the garbage collector finds them"
        yield "leaked", "warning", text
    if rates["undisposed"]:
        text = (
            f"not disposed of: {rate(rates['undisposed'])} engines end with connections open, because nobody calls "
            "dispose()"
        )
        yield "undisposed", "warning", text


def _dead(dead: dict[str, float], server: ProbedServer | None, limits: Limits | None) -> str:
    found = [
        f"{rate(dead[kind])} {how}"
        for kind, how in (
            ("error", "by a statement, which fails"),
            ("ping_failed", "by the pre-ping, which replaces them"),
        )
        if dead[kind]
    ]
    return f"dead connections: found {' and '.join(found)}{_idle_limit(server, limits)}"


def _idle_limit(server: ProbedServer | None, limits: Limits | None) -> str:
    if server is None or server.limits is None or limits is None:
        return ""
    limit = server.limits.idle_session_timeout_seconds
    if limit is None:
        return ""
    recycle = limits["recycle_seconds"]
    if recycle is not None and recycle < limit:
        return ""
    kept = "never recycles them" if recycle is None else f"recycles them only after {number(recycle)} s"
    tested = "" if limits["pre_ping"] else " and does not test them"
    return (
        f"; likely cause: the server of database {server.database!r} ends sessions that are idle for {duration(limit)} "
        f"(idle_session_timeout), and the pool {kept}{tested}"
    )
