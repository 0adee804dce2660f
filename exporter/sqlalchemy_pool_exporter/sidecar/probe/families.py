# SPDX-License-Identifier: Apache-2.0
"""Turns the status of each probe into metric families."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from sqlalchemy_pool_exporter.builder_cy import Builder
from sqlalchemy_pool_exporter.held_connections import held_states
from sqlalchemy_pool_exporter.metrics import (
    DATABASE_METRICS,
    PROBED_POOL_METRICS,
    HeldState,
    ProbeFailure,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.snapshot import Value

    from .probe import ProbeStatus
    from .server_state import ServerState
    from .sessions import ServerSide


def families(
    statuses: Iterable[ProbeStatus], now: float, labels: Mapping[str, Sequence[str]] | None = None
) -> Iterator[Family]:
    """Yield the metric families of all probed databases. A family without samples is left out.

    Args:
        statuses: of the probes.
        now: on the probes' (monotonic) clock.
        labels: the labels of the pools of each name: several if the pools of one default name differ.
    """
    builder = Builder(DATABASE_METRICS, owner=("database",))
    for status in statuses:
        owner = (status.database,)
        for pool in status.pools:
            for label in (labels or {}).get(pool, (pool,)):
                builder.add_info(owner, "database_pool_info", {"pool": label})
        builder.add(owner, _probe_values(status, now))
        if (server := status.server_at(now)) is not None:
            builder.add_info(owner, "database_server_info", {"server": server.facts.identity})
            builder.add(owner, _server_values(server))
    yield from builder.families(with_empty=False)


def pool_families(servers: Sequence[ServerSide], fleet: Fleet) -> Iterator[Family]:
    """Yield what the probes tell of the live pools that connect to a probed database.

    Args:
        servers: what the probes said before the segments were read.
        fleet: what the segments said.
    """
    builder = Builder(PROBED_POOL_METRICS, owner=("pool",))
    for label, counts in sorted(held_states(fleet, servers).items()):
        states: Value = {str(state): float(counts[state]) for state in get_args(HeldState)}
        builder.add((label,), [("held_connections_by_server_state", states)])
    yield from builder.families(with_empty=False)


def _probe_values(status: ProbeStatus, now: float) -> Iterator[tuple[str, Value]]:
    yield "database_read_only_expected", float(status.may_be_read_only)
    yield "database_probes_total", float(status.probes)
    failures = {reason: float(status.failures.get(reason, 0)) for reason in get_args(ProbeFailure)}
    yield "database_probe_failures_total", failures
    if status.completed_at is not None:
        yield "database_up", float(status.is_up)
        yield "database_probe_age_seconds", max(0.0, now - status.completed_at)
    if status.duration_seconds is not None:
        yield "database_probe_duration_seconds", status.duration_seconds
    if status.succeeded_at is not None:
        yield "database_last_success_timestamp_seconds", status.succeeded_at


def _server_values(server: ServerState) -> Iterator[tuple[str, Value]]:
    yield "database_max_connections", float(server.max_connections)
    yield "database_reserved_connections", float(server.reserved_connections)
    yield "database_behind_pooler", float(server.behind_pooler)
    yield "database_read_only", float(server.facts.is_read_only)
    if server.facts.is_in_recovery is not None:
        yield "database_in_recovery", float(server.facts.is_in_recovery)
    yield "database_start_time_seconds", server.facts.start_time
    # "unknown" is always present, so that a query can find a role that sees too little.
    sessions = {"unknown": 0, **server.connections}
    yield "database_connections", {str(state): float(count) for state, count in sessions.items()}
    for key, named in (
        ("application_connections", server.application_connections),
        ("user_connections", server.user_connections),
    ):
        if named is not None:
            yield f"database_{key}", {name: float(count) for name, count in named.items()}
    if server.threads_running is not None:
        yield "database_threads_running", float(server.threads_running)
    for key, seconds in (
        ("longest_idle_in_transaction_seconds", server.longest_idle_in_transaction_seconds),
        ("idle_session_timeout_seconds", server.idle_session_timeout_seconds),
        ("interactive_timeout_seconds", server.interactive_timeout_seconds),
        ("idle_in_transaction_session_timeout_seconds", server.idle_in_transaction_session_timeout_seconds),
    ):
        if seconds is not None:
            yield f"database_{key}", seconds
