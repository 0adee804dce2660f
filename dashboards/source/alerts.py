# SPDX-License-Identifier: Apache-2.0
"""Which panels show what an alert is about: the way from an alert to a dashboard, and from a panel to the runbook."""

from __future__ import annotations

from typing import NamedTuple

RUNBOOKS = "https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter/blob/main/docs/runbooks"


class Shown(NamedTuple):
    """Where an alert is shown: the dashboard, and the titles of its panels, the first to look at first."""

    board: str
    panels: tuple[str, ...]


SHOWN: dict[str, Shown] = {
    "SQLAlchemyPoolStarvation": Shown(
        "pool",
        ("Connections and callers waiting", "Who holds the connections now", "Where a checkout's time goes"),
    ),
    "SQLAlchemyPoolStuck": Shown(
        "pool",
        ("Stuck for, by process", "Who holds the connections now", "What held connections do in the server"),
    ),
    "SQLAlchemyPoolSelfDeadlock": Shown(
        "pool", ("Pools that wait for themselves, by process", "Nested checkouts, by site")
    ),
    "SQLAlchemyPoolWorkerStalled": Shown("pool", ("Longest held, by process", "Worker processes")),
    "SQLAlchemyPoolEventLoopBlocked": Shown("pool", ("Event loop lag, by process", "Worker processes")),
    "SQLAlchemyPoolWaitBudgetBurn": Shown(
        "pool",
        ("Wait for a connection, percentiles", "Wait for a connection", "Where a checkout's time goes"),
    ),
    "SQLAlchemyPoolNearCapacity": Shown(
        "pool", ("Connections that the traffic needs", "In use against capacity, by process")
    ),
    "SQLAlchemyPoolOverflowChurn": Shown("pool", ("Overflow churn", "Overflow and empty slots")),
    "SQLAlchemyPoolStaleConnections": Shown("pool", ("Dead connections", "Closed, by reason")),
    "SQLAlchemyPoolNoPrePing": Shown("pool", ("Configuration", "Dead connections")),
    "SQLAlchemyPoolRecycleAboveIdleLimit": Shown("pool", ("Configuration", "Oldest connection, by process")),
    "SQLAlchemyPoolRecycleStorm": Shown("pool", ("Closed, by reason", "Time to connect and to ping")),
    "SQLAlchemyPoolNeedlessRecycling": Shown("pool", ("Configuration", "Closed, by reason")),
    "SQLAlchemyPoolHeldTooLong": Shown("pool", ("Longest held, by site", "Longest held, by process")),
    "SQLAlchemyPoolLeakedCheckouts": Shown("pool", ("Leaks, by site", "Leaked and detached")),
    "SQLAlchemyPoolFinding": Shown("pool", ("Findings",)),
    "SQLAlchemyPoolConnectErrors": Shown("pool", ("Dead connections", "Checkouts that failed")),
    "SQLAlchemyPoolOldConnections": Shown("pool", ("Oldest connection, by process",)),
    "SQLAlchemyPoolDatabaseNearMax": Shown(
        "database", ("Connections against what is allowed", "Connections by application")
    ),
    "SQLAlchemyPoolFleetCeiling": Shown("database", ("What the pools could ask for",)),
    "SQLAlchemyPoolReadOnlyServer": Shown("database", ("Refuses writes", "Servers")),
    "SQLAlchemyPoolIdleInTransaction": Shown(
        "database", ("Longest idle in transaction", "Idle in transaction")
    ),
    "SQLAlchemyPoolProbeFailing": Shown("database", ("Probes that failed, by reason", "Time of a probe")),
    "SQLAlchemyPoolWorkerGone": Shown("overview", ("Workers",)),
    "SQLAlchemyPoolExporterDown": Shown("overview", ("Targets up",)),
    "SQLAlchemyPoolExporterFailing": Shown("overview", ("What the exporter could not see",)),
    "SQLAlchemyPoolReloadFailed": Shown("overview", ("Configuration current",)),
}


def runbooks_of(board: str, panel: str) -> list[str]:
    """Return the alerts that a panel of a dashboard shows."""
    return [name for name, shown in SHOWN.items() if shown.board == board and panel in shown.panels]


def runbook(alert: str) -> str:
    """Return the address of an alert's runbook."""
    return f"{RUNBOOKS}/{alert}.md"
