# SPDX-License-Identifier: Apache-2.0
"""The incidents that are staged, with the alerts that must fire for each, those that may, and why."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from tests.support.incidents import Incident, Minutes
from tests.support.worker_incidents import WORKER_INCIDENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.incidents import Stage
    from tests.support.staged_database import Database

# Minutes of normal load before an incident, and of an incident: longer than its slowest alert needs to fire.
QUIET: Final = 10.0
LONG: Final = 32.5

_FULL: Final = {
    ("NearCapacity", "info"): "the pool is full while callers wait",
    ("WaitBudgetBurn", "warning"): "who waits in the queue waits longer than the objective",
    ("WaitBudgetBurn", "critical"): "who waits in the queue waits longer than the objective",
}
# On a busy machine a connect can take a second instead of 10 ms.
_CONNECTING: Final = {
    ("WaitBudgetBurn", "warning"): "checkouts connect anew, and wait for that as long as it takes",
    ("WaitBudgetBurn", "critical"): "checkouts connect anew, and wait for that as long as it takes",
}


def _healthy(stage: Stage, begin: Callable[[], object]) -> None:
    """Five callers for four connections, each of which needs one 60 % of its time."""
    begin()
    stage.load(5, seconds=0.4, pause=0.27)
    stage.last(QUIET + LONG)


def _slow(stage: Stage, begin: Callable[[], object]) -> None:
    """Queries that took 20 ms take 800, so twelve callers want more than three connections can do; then all is well."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.load(12, seconds=0.8)
    stage.last(LONG)
    stage.load(2)
    stage.last(QUIET)


def _leak(stage: Stage, begin: Callable[[], object]) -> None:
    """Each caller forgets to close, every five seconds."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.load(1, "forget", seconds=4.0, pause=1.0)
    stage.last(LONG / 2)


def _kept(stage: Stage, begin: Callable[[], object]) -> None:
    """Each caller keeps every connection that it gets."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.load(4, "keep", pause=0.5)
    stage.last(LONG)


def _nested(stage: Stage, begin: Callable[[], object]) -> None:
    """More callers than connections, each of which asks for a second one while it holds its first."""
    stage.load(1)
    stage.last(QUIET)
    begin()
    stage.load(6, "nest", seconds=0.1, pause=0.05)
    stage.last(LONG)


def _bursts(stage: Stage, begin: Callable[[], object]) -> None:
    """Callers come together, do a query each, and leave the pool idle for longer than the server allows."""
    begin()
    stage.load(3, pause=5.0)
    stage.last(LONG)


def _restart(stage: Stage, begin: Callable[[], object]) -> None:
    """The server stops, and starts again after ten minutes."""
    stage.load(3)
    stage.last(QUIET)
    begin()
    stage.database.stop()
    stage.last(10.0)
    stage.database.start()
    stage.last(25.0)


def _refuse_writes(stage: Stage, begin: Callable[[], object]) -> None:
    """The server refuses writes from one moment to the next, as after a failover to a replica."""
    stage.load(2, "write")
    stage.last(QUIET)
    begin()
    stage.database.ask("ALTER SYSTEM SET default_transaction_read_only = on")
    stage.database.ask("SELECT pg_reload_conf()")
    stage.last(LONG)


def _busy(stage: Stage, begin: Callable[[], object]) -> None:
    """As many callers as connections, all the time."""
    begin()
    stage.load(10, seconds=0.8, pause=0.5)
    stage.last(LONG)


def _five(stage: Stage, begin: Callable[[], object]) -> None:
    """Five callers in each worker, some of which need a connection at the same time."""
    begin()
    stage.load(5, seconds=0.3, pause=0.9)
    stage.last(LONG)


def _hardly_used(stage: Stage, begin: Callable[[], object]) -> None:
    """Two callers in each worker."""
    begin()
    stage.load(2, seconds=0.1, pause=0.1)
    stage.last(LONG)


def _crowd(stage: Stage, begin: Callable[[], object]) -> None:
    """New workers come, and every pool fills up at once: before it is told that they could."""
    begin()
    stage.hire(2)
    stage.load(20, seconds=2.0, pause=2.0)
    stage.last(LONG)


def _handler(stage: Stage, begin: Callable[[], object]) -> None:
    """A handler that reads a row awaits something slow before it gives the connection back."""
    stage.load(1)
    stage.last(QUIET)
    begin()
    stage.load(1, "wait", seconds=stage.seconds(12.5))
    stage.last(LONG / 2)


def _kill(stage: Stage, begin: Callable[[], object]) -> None:
    """One worker is killed and not replaced."""
    # Long enough for three to be the usual number of workers, although there were none at the start.
    stage.load(2)
    time.sleep(stage.starting_seconds)
    stage.last(LONG / 2)
    begin()
    stage.kill_one()
    stage.last(LONG / 2)


def _replace(stage: Stage, begin: Callable[[], object]) -> None:
    """One worker is killed, and another takes its place."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.kill_one()
    stage.hire(1)
    stage.load(2)
    stage.last(LONG / 2)


def _break(stage: Stage, begin: Callable[[], object]) -> None:
    """The exporter's configuration and directory become invalid, and all of its workers are killed."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.break_exporter()
    for _ in range(len(stage.workers)):
        stage.kill_one()
    stage.last(LONG / 2)


def _end(stage: Stage, begin: Callable[[], object]) -> None:
    """The sidecar is killed."""
    stage.load(2)
    stage.last(QUIET)
    begin()
    stage.sidecar.end(signal.SIGKILL)
    stage.last(LONG / 2)


def _create_role(database: Database) -> None:
    """Make a role that cannot use the reserved connections."""
    database.ask("CREATE ROLE app LOGIN")


INCIDENTS: Final = [
    *WORKER_INCIDENTS,  # the first that begin, for what is over in them has to end within the run
    Incident(
        "healthy",
        "full but sufficient: nothing fires",
        _healthy,
        pool={"pool_size": 4, "max_overflow": 0, "pool_pre_ping": True, "pool_recycle": Minutes(12.5)},
        settings={"idle_session_timeout": "1h", "idle_in_transaction_session_timeout": "1h"},
    ),
    Incident(
        "slow",
        "slow queries beyond what the pool can do",
        _slow,
        expected={
            ("Starvation", "warning"): ("starvation_window", "starvation_for"),
            ("Starvation", "critical"): ("starvation_window", "starvation_timeout_for"),
            ("NearCapacity", "info"): ("capacity_window", "capacity_for"),
            ("WaitBudgetBurn", "critical"): ("wait_fast_window", "wait_fast_for"),
            ("Finding", "info"): ("finding_for",),
        },
        allowed=_FULL,
        pool={"pool_size": 2, "max_overflow": 1, "pool_timeout": 2.5, "pool_pre_ping": True},
    ),
    Incident(
        "leak",
        "checkouts that nobody returns, found by the garbage collector",
        _leak,
        expected={("LeakedCheckouts", "warning"): ("leaked_for",)},
        pool={"pool_size": 3, "pool_pre_ping": True},
        sites=True,
    ),
    Incident(
        "kept",
        "checkouts that nobody returns, kept in a cache until the pool is empty",
        _kept,
        expected={
            ("Stuck", "critical"): ("stuck_seconds", "stuck_for"),
            ("Stuck", "warning"): ("stuck_seconds", "stuck_for"),
            ("Starvation", "warning"): ("starvation_window", "starvation_for"),
            ("Starvation", "critical"): ("starvation_window", "starvation_timeout_for"),
            ("HeldTooLong", "warning"): ("held_seconds", "held_for"),
        },
        allowed={
            **_FULL,
            (
                "SelfDeadlock",
                "warning",
            ): "a thread that lost a connection asks for another: at first it looks the same",
        },
        pool={"pool_size": 2, "max_overflow": 1, "pool_timeout": 4.0, "pool_pre_ping": True},
    ),
    Incident(
        "nested",
        "callers wait for a second connection while they hold their first",
        _nested,
        expected={
            ("SelfDeadlock", "warning"): ("deadlock_for",),
            ("SelfDeadlock", "critical"): ("deadlock_critical_window", "deadlock_critical_for"),
            ("Starvation", "warning"): ("starvation_window", "starvation_for"),
            ("Starvation", "critical"): ("starvation_window", "starvation_timeout_for"),
        },
        allowed=_FULL,
        pool={"pool_size": 3, "max_overflow": 0, "pool_timeout": 4.0, "pool_pre_ping": True},
    ),
    Incident(
        "idlekill",
        "the server ends idle connections, and the pool does not test them",
        _bursts,
        expected={
            ("StaleConnections", "warning"): ("stale_for",),
            ("NoPrePing", "warning"): ("idle_limit_for",),
        },
        allowed=_CONNECTING,
        pool={"pool_size": 3},
        settings={"idle_session_timeout": "3s"},
        is_configured=True,
    ),
    Incident(
        "idleping",
        "the server ends idle connections, pre-ping finds them, and recycle is too late",
        _bursts,
        expected={
            ("StaleConnections", "info"): ("stale_for",),
            ("RecycleAboveIdleLimit", "warning"): ("idle_limit_for",),
        },
        allowed=_CONNECTING,
        pool={"pool_size": 3, "pool_pre_ping": True, "pool_recycle": 3600},
        settings={"idle_session_timeout": "3s"},
        is_configured=True,
    ),
    Incident(
        "restart",
        "the database is away for ten minutes and comes back",
        _restart,
        expected={
            ("ConnectErrors", "critical"): ("connect_window", "connect_critical_for"),
            ("ConnectErrors", "warning"): ("connect_window", "connect_warning_for"),
            ("ProbeFailing", "warning"): ("probe_for",),
        },
        pool={"pool_size": 3, "pool_pre_ping": True},
    ),
    Incident(
        "readonly",
        "the server refuses writes",
        _refuse_writes,
        expected={
            ("ReadOnlyServer", "critical"): ("read_only_for",),
            ("ReadOnlyServer", "warning"): ("read_only_for",),
        },
        pool={"pool_size": 3, "pool_pre_ping": True},
    ),
    Incident(
        "churn",
        "a pool smaller than its load, with overflow that is opened and thrown away",
        _five,
        expected={("OverflowChurn", "warning"): ("churn_window", "churn_for")},
        allowed=_CONNECTING,
        pool={"pool_size": 1, "max_overflow": 9, "pool_pre_ping": True},
        is_configured=True,
    ),
    Incident(
        "recycle",
        "recycle set too low",
        _busy,
        expected={
            ("NeedlessRecycling", "info"): ("recycle_for",),
            ("NeedlessRecycling", "warning"): ("recycle_window", "recycle_for"),
        },
        allowed=_CONNECTING,
        pool={"pool_size": 10, "max_overflow": 0, "pool_pre_ping": True, "pool_recycle": 5},
        is_configured=True,
    ),
    Incident(
        "ceiling",
        "pools larger than max_connections, and hardly used: told before it happens",
        _hardly_used,
        expected={
            ("FleetCeiling", "critical"): ("ceiling_for",),
            ("FleetCeiling", "warning"): ("ceiling_for",),
        },
        pool={"pool_size": 20, "max_overflow": 0, "pool_pre_ping": True},
        settings={"max_connections": "20"},
        is_configured=True,
    ),
    Incident(
        "refused",
        "pools larger than max_connections, and filled",
        _crowd,
        expected={
            ("FleetCeiling", "critical"): ("ceiling_for",),
            ("FleetCeiling", "warning"): ("ceiling_for",),
            ("ConnectErrors", "warning"): ("connect_window", "connect_warning_for"),
            ("DatabaseNearMax", "critical"): ("database_for",),
            ("DatabaseNearMax", "warning"): ("database_for",),
        },
        allowed={
            **_CONNECTING,
            ("ConnectErrors", "critical"): "until the probe sees for long enough that the database is full",
        },
        pool={"pool_size": 20, "max_overflow": 0, "pool_pre_ping": True},
        # What is reserved is for the probe and for the reader of the runbooks: a session that is going to be refused
        # takes one of these connections for a moment, and there are many such.
        settings={"max_connections": "27", "superuser_reserved_connections": "10"},
        workers=0,
        is_configured=True,
        role="app",
        prepare=_create_role,
    ),
    Incident(
        "handler",
        "a handler awaits something slow while it holds a connection",
        _handler,
        expected={
            ("HeldTooLong", "warning"): ("held_seconds", "held_for"),
            ("IdleInTransaction", "warning"): ("transaction_warning_seconds", "transaction_for"),
        },
        allowed={("WorkerStalled", "warning"): "nothing comes back from a worker whose callers all await"},
        pool={"pool_size": 5, "pool_pre_ping": True},
        driver="asyncpg",
        sites=True,
    ),
    Incident(
        "killed",
        "a worker is killed and not replaced",
        _kill,
        expected={("WorkerGone", "warning"): ("worker_for",)},
        pool={"pool_size": 2, "pool_pre_ping": True},
        workers=3,
    ),
    Incident(
        "replaced",
        "a worker is killed and replaced: nothing fires",
        _replace,
        pool={"pool_size": 2, "pool_pre_ping": True},
    ),
    Incident(
        "broken",
        "the exporter's configuration is wrong, its directory has a file of somebody else's, all workers are killed",
        _break,
        expected={
            ("ReloadFailed", "warning"): ("reload_for",),
            ("ExporterFailing", "warning"): ("exporter_failing_for",),
            ("WorkerGone", "critical"): ("worker_for",),
        },
        allowed={
            (
                "WorkerGone",
                "warning",
            ): "two workers were what is usual, unless starting took longer than they lived"
        },
        pool={"pool_size": 2, "pool_pre_ping": True},
    ),
    Incident(
        "down",
        "the sidecar is killed",
        _end,
        expected={("ExporterDown", "warning"): ("exporter_down_for",)},
        pool={"pool_size": 2, "pool_pre_ping": True},
    ),
]

# Alerts that may fire in any incident, and why.
ANYWHERE: Final = {("Finding", "info"): "what is staged is configured badly on purpose"}

# Tiers that no incident stages, and why.
UNSTAGED: Final = {
    (
        "WaitBudgetBurn",
        "warning",
    ): "burns six hours, which are 24 minutes here at least; `slow` has the faster one",
    ("OldConnections", "info"): "a day is 96 minutes here at least",
    ("IdleInTransaction", "critical"): "half an hour is two minutes here at least; `handler` has the warning",
}
