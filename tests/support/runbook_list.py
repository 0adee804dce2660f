# SPDX-License-Identifier: Apache-2.0
"""What each block of each runbook must put out while an incident of its alert is on."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg

from tests.support.runbooks import blocks, page
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# Patterns, searched in the output. ``<name>`` is the incident, which is also the pool and the database; ``<instance>``
# the sidecar; ``<worker_pids>`` and ``<gone_pids>`` are processes; ``<active_pids>`` and the like sessions by state.
NOTHING: Final = r"\A\s*\Z"
SOME: Final = r"\} [\d.e+-]+\n"
PROCESS: Final = r'pid="(<worker_pids>)".* worker="\d+"'
# A psql row with a session and its age, which is not negative.
AGE: Final = r"\| (\d+ days? )?\d\d:\d\d:\d\d"
# A row of `top`: the place in the code, the process, and the state of the session in the server.
HOLDER: Final = r"__main__:{}:\d+ .* pid (<worker_pids>)\b.*{}"
# The dump of a worker has the script that it runs.
DUMP: Final = r"Process (<worker_pids>): .*incident_worker"


@contextmanager
def _blocked(dsn: str) -> Iterator[None]:
    """Keep a session waiting for the lock that the handlers of the incident hold."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        def wait() -> None:
            connection.execute("SET lock_timeout = '5s'")
            try:
                connection.execute("SELECT pg_advisory_lock(1)")
            except psycopg.Error:
                return  # a lock that was not to be had, or the end of the test

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            with psycopg.connect(dsn, autocommit=True) as beside:
                waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                eventually(lambda: beside.execute(waits).rowcount or not thread.is_alive())
            yield
        finally:
            connection.cancel_safe()
            thread.join()


def _nobody(_dsn: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A runbook and an incident for which it is followed.

    Args:
        alert: without its prefix.
        incident: by name.
        patterns: one for each block of the page; None where a block cannot be run, which a comment explains.
        role: connects to the database in place of the incident's.
        beside: what else is done while SQL is asked; its argument is the DSN.
    """

    alert: str
    incident: str
    patterns: tuple[str | None, ...]
    role: str = ""
    beside: Callable[[str], AbstractContextManager[None]] = _nobody

    @property
    def connects(self) -> bool:
        """Whether the page asks the database."""
        return any(block.kind == "sql" or "psql" in block.text for block in blocks(page(self.alert)))

    def __str__(self) -> str:
        return f"{self.alert}-{self.incident}"


CASES: Final = [
    Case(
        "Starvation",
        "slow",
        (
            HOLDER.format(r"Callers\.query", "active"),
            PROCESS,
            r'worker="\d+"',
            NOTHING,
            r'instance="<instance>"',
            r"\} (0\.[4-9]|[1-9])",  # twenty times as long as before
            r'site="__main__:Callers\.query:\d+"\} [1-9]',
            r'site="__main__:Callers\.query:\d+"\} (0\.[4-9]|[1-9])',
            r"active .*pg_sleep.*(<active_pids>)",
            rf"{DUMP}(.|\n)*_do_get(.|\n)*query \(",
            r'database="<name>"',
        ),
    ),
    Case(
        "SelfDeadlock",
        "nested",
        (
            r"self-deadlock in worker \d+ \(pid (<worker_pids>)\)(.|\n)*"
            + HOLDER.format(r"Callers\.nest", "idle in transaction"),
            PROCESS,
            r'job="<name>", site="__main__:Callers\.nest:\d+"\} [\d.]*[1-9]',
            r"idle in transaction .*(<idle_in_transaction_pids>)",
            rf"{DUMP}(.|\n)*_do_get(.|\n)*nest \(",
        ),
    ),
    Case(
        "Stuck",
        "kept",
        (
            HOLDER.format(r"Callers\.keep", "idle"),
            r'pid="(<worker_pids>)".* site="__main__:Callers\.keep:\d+", worker="\d+"\} [1-9]',
            r'worker="\d+"\} [4-9.\d]+',
            rf"\b(<idle_pids>)\b.*\| idle +{AGE}",
            rf"{DUMP}(.|\n)*_do_get(.|\n)*keep \(",
        ),
    ),
    Case(
        "WaitBudgetBurn", "slow", (r"\} 0\.[3-9]|\} [1-9]", r"\} 0|\} \S+e-", SOME, r'instance="<instance>"')
    ),
    Case("NearCapacity", "slow", (r'worker="\d+"\} [01]', SOME, r"\} 0\.[3-9]", r'worker="\d+"')),
    Case("OverflowChurn", "churn", (SOME, SOME, r'worker="\d+"\} [1-9]', r'worker="\d+"\} 1\n')),
    Case(
        "StaleConnections",
        "idlekill",
        (r'reason="error"', r"idle_session_timeout +\| 3000 +\| ms"),
    ),
    Case("NoPrePing", "idlekill", (r"\} 3\n", r"\} 0\n", NOTHING, r'reason="error".*\} [\d.]*[1-9]')),
    Case("RecycleAboveIdleLimit", "idleping", (r"\} 3600\n", r"\} 3\n", r"\} [\d.]*[1-9]")),
    Case("RecycleStorm", "storm", (r'job="<name>"\} [\d.]*[1-9]', r"\} [1-9]\d+\n", SOME)),
    Case("NeedlessRecycling", "recycle", (r'instance="<instance>"\} [\d.]*[1-9]', r"\} (0\.[5-9]|1)")),
    Case(
        "HeldTooLong",
        "handler",
        (
            HOLDER.format(r"Handlers\.wait", "idle in transaction"),
            r'pid="(<worker_pids>)".* site="__main__:Handlers\.wait:\d+", worker="\d+"\} [\d.]*[1-9]',
            r'server_state="idle_in_transaction"\} [1-9]',
            r"\{\} [\d.]+\n",
            rf"\b(<idle_in_transaction_pids>)\b.*idle in transaction +{AGE}.*advisory",
            rf"{DUMP}",
        ),
    ),
    # The code of the last block is run by a test of its own.
    Case(
        "LeakedCheckouts",
        "leak",
        (
            HOLDER.format(r"Callers\.forget", "idle in transaction"),
            r'job="<name>", site="__main__:Callers\.forget:\d+"\} [\d.]*[1-9]',
            r'job="<name>"\} [\d.]*[1-9]',
            r'reason="cancelled"\} 0\n',
            None,
        ),
    ),
    Case(
        "ConnectErrors",
        "refused",
        (
            r'instance="<instance>"',
            r'database="<name>".*\} 1\n',
            NOTHING,  # its probe may use the reserved connections
            r"\} (0\.9|1)",
            r"FATAL: .*(remaining connection slots|too many clients)",
        ),
    ),
    # Its age is told at the end of the run: none gets a day old.
    Case(
        "OldConnections",
        "healthy",
        (r'pool="<name>"\} 0\.0', r'pool="<name>"\} [1-9]\d+\n', rf"127\.0\.0\.1 \| f .*\| +[1-9]\d* {AGE}"),
    ),
    Case(
        "DatabaseNearMax",
        "refused",
        (
            r'application_name="unnamed".*\} 1\d\n',
            r'state="(active|idle)".*\} [1-9]',
            r'pool="<name>"\} 1\d\n',
            r"app +\| +\| 127\.0\.0\.1 +\|.*\| +[1-9]",
        ),
        role="postgres",
    ),
    Case(
        "FleetCeiling",
        "ceiling",
        (
            r'pool="<name>"\} 40\n',
            r'database="<name>"\} 17\n',
            r'database="<name>", server=.*\} 40\n',
            r"\} 2\n",
            r"\} 20\n",
            r'pool="<name>"\} [1-9]',
        ),
    ),
    Case(
        "IdleInTransaction",
        "handler",
        (
            rf"\b(<idle_in_transaction_pids>)\b.*{AGE}.*{AGE}.*advisory",
            r"\{.*\b(<idle_in_transaction_pids>)\b.*\}.*pg_advisory_lock\(1\)",
            HOLDER.format(r"Handlers\.wait", "idle in transaction"),
            r'pid="(<worker_pids>)".* site="__main__:Handlers\.wait:\d+"',
        ),
        beside=_blocked,
    ),
    # There is neither a kubelet nor a kernel that had to kill.
    Case("WorkerGone", "killed", (r'state="live".*\} 2\n', r'pid="(<gone_pids>)"', None)),
    Case(
        "WorkerStalled",
        "stopped",
        (
            r'\A\{.*pid="(<stopped_pid>)".*\} [4-9.\d]+\n',
            r'worker="\d+"',
            rf"<stopped_pid> +T .*incident_worker(.|\n)*{DUMP}(.|\n)*_call \(",
        ),
    ),
    Case(
        "EventLoopBlocked",
        "blockedone",
        (
            r"event loop blocked: worker \d+ \(pid (<worker_pids>)\)(.|\n)*"
            + HOLDER.format(r"Handlers\.block", "idle in transaction"),
            PROCESS,
            rf"{DUMP}(.|\n)*block \(",
        ),
    ),
    Case("ExporterDown", "down", (r'instance="<instance>".*\} 0\n', r"(refused|connect)(.|\n)*listening on")),
    Case(
        "ExporterFailing",
        "broken",
        (r'reason="foreign"\} 1\n', NOTHING, r"uid=(.|\n)*worker-900(.|\n)*Mounted on"),
    ),
    Case(
        "ReadOnlyServer",
        "readonly",
        (
            r"<name>: read-only: the server of database '<name>' takes no writes: default_transaction_read_only.*fail",
            r'database="<name>".*\} 0',
            r"f +\| on",
            r"on +\| configuration file",
            r'pool="<name>"\} [\d.]*[1-9]',
            r'pool="<name>"',
        ),
    ),
    Case("ProbeFailing", "restart", (r'database="<name>".*reason="\w+"', r"database")),
    Case(
        "Finding",
        "slow",
        (r"<name>: pool_below_threads: ", r'job="<name>", pool="<name>", rule="pool_below_threads"\} 1\n'),
    ),
    Case("ReloadFailed", "broken", (r"\} [\d.]*[1-9]", r"databases: .*\n(.|\n)*not reloaded")),
]
