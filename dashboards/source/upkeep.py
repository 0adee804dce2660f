# SPDX-License-Identifier: Apache-2.0
"""The row "Maintenance" of the Pool dashboard: why connections open and close, configuration and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from .panels import AGE, EVENTS, LONG_AGE, Query, timeseries
from .promql import FEW, WORKERS, exporter, pool, rate, state
from .recorded import OVER, rates_of
from .selections import of_processes, total
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

WORKER_LABELS = "worker, pid, program, command, started, instance"


def maintenance() -> list[Builder[Panel]]:
    """Return the panels on why connections open and close, and on the pool's configuration."""
    thrown_away = pool("closes_total", 'reason="overflow"')
    return [
        timeseries(
            "Closed, by reason",
            "Connections closed a second. recycle: by pool_recycle. overflow: beyond pool_size. ping_failed, error: "
            "dead. pool_invalidated: the whole pool after one was dead. gc: leaked. unpooled: NullPool. Good: a "
            f"little recycle. Bad: any other that stays; overflow in step with the traffic. {OVER}",
            Query(rates_of("closes", "reason"), "{{reason}}"),
            unit=EVENTS,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Overflow churn",
            "Connections opened, opened beyond pool_size, and closed on return for that. Good: opened near 0. Bad: "
            "all three together: the pool opens and throws away a connection for each burst; a larger pool_size would "
            "keep them.",
            Query(total("connects_total"), "opened"),
            Query(total("overflow_opened_total"), "opened as overflow"),
            Query(f"sum({rate(thrown_away)})", "closed as overflow"),
            unit=EVENTS,
            span=12,
        ),
        timeseries(
            "Overflow and empty slots",
            "Connections beyond pool_size, and slots whose connection was closed and not replaced yet. Good: overflow "
            "at peaks alone. Bad: overflow all day, which is a pool_size too small.",
            Query(f"sum({state('overflow_connections')})", "overflow"),
            Query(f"sum({state('empty_slots')})", "empty slots"),
            unit=units.Short,
        ),
        timeseries(
            "Oldest connection, by process",
            "Age of the oldest open connection, and pool_recycle (dashed) if it is set. Good: falls back at "
            "restarts, deployments and failovers. Bad: older than the last failover: it leads to the old primary. "
            f"{FEW}",
            of_processes(state("oldest_connection_seconds")),
            Query(f"min({state('recycle_seconds')})", "pool_recycle", limit=True),
            unit=LONG_AGE,
        ),
        timeseries(
            "Not seen",
            "Open connections that found no room in the table, and faults while recording. Good: 0. Bad: the numbers "
            "above are too small; report it.",
            Query(f"sum({state('untracked_connections')})", "untracked"),
            Query(total("exporter_recording_faults_total"), "faults/s"),
            unit=units.Short,
            is_bad=True,
        ),
        table(
            "Configuration",
            "How each pool is set up; where processes differ, the smallest, and for the overflow the largest. Good: "
            "recycle below what the server allows an idle connection, pre-ping on against a database that cuts them. "
            "Bad: recycle under 300 s: connections are made anew for nothing; ever more pools of a name: an engine is "
            "made again and again.",
            Query(f"count by (job, pool, pool_class, dialect, driver) ({pool('info')})", ""),
            Query(f"sum by (job, pool) ({state('instances')})", "pools"),
            Query(f"min by (job, pool) ({state('size')})", "pool_size"),
            Query(f"max by (job, pool) ({state('max_overflow')})", "max_overflow"),
            Query(f"min by (job, pool) ({state('timeout_seconds')})", "pool_timeout"),
            Query(f"min by (job, pool) ({state('recycle_seconds')})", "pool_recycle"),
            Query(f"min by (job, pool) ({state('pre_ping')})", "pre-ping"),
            Query(f"sum by (job, pool) ({pool('capacity')})", "capacity of all"),
            keys=("pool",),
            last_keys=("pool_class", "dialect", "driver", "job"),
            columns={
                "pools": Column(width=70),
                "pool_size": Column(),
                "max_overflow": Column(width=120),
                "pool_timeout": Column(AGE, width=115),
                "pool_recycle": Column(AGE, width=115),
                "pre-ping": Column(units.BoolYesNo, width=85),
                "capacity of all": Column(width=120),
            },
            height=6,
        ),
        table(
            "Findings",
            "Common mistakes in how the pools are configured or used, and in how many targets each is found. Good: "
            "empty. Bad: any: `sqlalchemy-pool-exporter audit` says why it is one, and what to do.",
            Query(f"count by (job, pool, rule) ({pool('finding')})", "Targets"),
            keys=("rule", "pool"),
            last_keys=("job",),
            columns={"Targets": Column()},
            span=10,
            height=6,
        ),
        table(
            "Worker processes",
            "The processes behind the numbers of the label worker, for py-spy or the log. Neither good nor bad; a "
            "worker that an alert names is here with its pid, as its container or host counts.",
            Query(f"max by ({WORKER_LABELS}) ({exporter('exporter_worker_info', WORKERS)})", ""),
            keys=("worker", "pid", "program", "command", "started", "instance"),
            columns={},
            span=14,
            height=6,
        ),
    ]
