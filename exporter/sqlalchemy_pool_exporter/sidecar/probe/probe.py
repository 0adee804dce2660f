# SPDX-License-Identifier: Apache-2.0
"""A probe: asks one database server over one read-only connection how many connections it has.

A `Probe` runs at its own interval and keeps its last `ProbeStatus`. A scrape reads that status and never waits for a
server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy_pool_exporter.held_connections import ServerHealth

from .errors import classify_error
from .server_kinds import connect
from .sessions import ServerSide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sqlalchemy_pool_exporter.metrics import ProbeFailure

    from .failure import Failure
    from .server_kinds import ServerConnection
    from .server_state import ServerState

# First and longest delay after a failed probe, in seconds. If the interval is longer, it is the longest delay.
BACKOFF: Final = (1.0, 60.0)

_logger = logging.getLogger(__name__)


class DatabaseSettings(Protocol):
    """What a probe needs to know about a database."""

    @property
    def name(self) -> str:
        """Value of the label ``database``."""

    @property
    def interval_seconds(self) -> float:
        """Time between the end of a probe and the start of the next."""

    @property
    def timeout_seconds(self) -> float:
        """Longest time for a probe, connecting included."""

    @property
    def application_names_limit(self) -> int:
        """Largest number of application names that get a series of their own."""

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools that connect to this database; if empty, the pool with the database's name."""

    @property
    def read_only(self) -> bool:
        """Whether these pools only read, so that the server may refuse writes."""

    @property
    def statements(self) -> bool:
        """Whether the texts of statements are read."""

    def connect_arguments(self) -> dict[str, Any]:
        """Return ``dsn`` and ``ssl``, which say where and how to connect; may read files.

        Raises:
            ConfigError: A file cannot be read, or a setting cannot be used.
        """


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """How a database's probe is doing: counters since its start, and the result of the last probe.

    ``completed_at`` and ``expires_at`` are on the monotonic clock, ``succeeded_at`` is Unix time. ``server`` is what
    the last successful probe read. After a failure it holds until ``expires_at``: if one failed probe made a gap in
    the series, alerts would start to count their ``for`` anew.
    """

    database: str
    pools: tuple[str, ...] = ()
    may_be_read_only: bool = False
    probes: int = 0
    failures: Mapping[ProbeFailure, int] = field(default_factory=dict)
    completed_at: float | None = None
    duration_seconds: float | None = None
    succeeded_at: float | None = None
    is_up: bool = False
    failure: Failure | None = None  # of the last probe
    failing_since: float = (
        0.0  # when the first one ended of those that failed in a row, on the monotonic clock
    )
    server: ServerState | None = None
    expires_at: float = math.inf
    next_due_at: float = 0.0  # when the next probe should have ended, if nothing hinders it

    def server_at(self, now: float) -> ServerState | None:
        """Return what is known of the server at ``now``, on the monotonic clock."""
        return self.server if now < self.expires_at else None

    def server_side(self, now: float) -> ServerSide:
        """Return what is known of single sessions; nothing once the next probe is overdue, since they change fast."""
        server = self.server_at(now)
        limits = None if server is None else server.limits
        identity = "" if self.server is None else self.server.facts.identity
        sessions = None if self.server is None or now > self.next_due_at else self.server.sessions
        return ServerSide(self.database, self.pools, identity, sessions, limits, self.health)

    @property
    def health(self) -> ServerHealth | None:
        """What is known of the server as a whole."""
        if self.failure is not None:
            return ServerHealth(self.failure.text, self.failing_since)
        if self.server is None:
            return None
        facts = self.server.facts
        return ServerHealth(
            started_at=facts.start_time,
            refuses_writes=facts.is_read_only and not self.may_be_read_only,
            is_in_recovery=bool(facts.is_in_recovery),
            read_only_setting=facts.read_only_setting,
        )


class Probe:
    """Probes one database over one connection for as long as `run` runs.

    Mutable state: the status, which is replaced as a whole so that any thread may read it; the connection, which only
    the task in `run` uses, and the settings that its session began with; and the warnings that have been logged.
    """

    def __init__(
        self,
        database: DatabaseSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._uniform = uniform
        self._status = ProbeStatus(
            database.name, database.pools or (database.name,), may_be_read_only=database.read_only
        )
        self._connection: ServerConnection | None = None
        self._session_settings = ""
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        status = self._status
        state = "not probed" if status.completed_at is None else "up" if status.is_up else "down"
        return f"<Probe {self._database.name!r} {state}, {status.probes} probes>"

    @property
    def status(self) -> ProbeStatus:
        """Counters and last result; any thread may read them."""
        return self._status

    async def run(self) -> None:
        """Probe until cancelled, then close the connection. Raises nothing but the cancellation."""
        failures_in_a_row = 0
        last: Failure | None = None
        try:
            while True:
                failure = await self._probe()
                if failure is None:
                    failures_in_a_row, delay = 0, self._database.interval_seconds
                else:
                    failures_in_a_row += 1
                    delay = backoff(failures_in_a_row, self._database.interval_seconds, self._uniform)
                self._log_transition(last, failure, delay)
                last = failure
                await self._sleep(delay)
        finally:
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                # If close() raises, the driver has aborted the connection already.
                with contextlib.suppress(Exception):
                    await connection.close()

    async def _probe(self) -> Failure | None:
        """Probe once and replace the status; return why it failed."""
        began = self._clock()
        server = failure = None
        try:
            async with asyncio.timeout(self._database.timeout_seconds):
                server = await self._read()
        except Exception as error:  # noqa: BLE001 - no failure of a probe may end the task
            failure = classify_error(error)
        finally:
            # Also after a cancellation: a connection that was left in the middle of an exchange cannot be used again.
            if server is None and self._connection is not None:
                self._connection.terminate()
                self._connection = None
        ended = self._clock()
        last = self._status
        failures = last.failures if failure is None else Counter(last.failures) + Counter([failure.reason])
        self._status = dataclasses.replace(
            last,
            probes=last.probes + 1,
            failures=failures,
            completed_at=ended,
            duration_seconds=ended - began,
            succeeded_at=last.succeeded_at if failure else self._wall(),
            is_up=failure is None,
            failure=failure,
            failing_since=last.failing_since if last.failure is not None else ended,
            server=server or last.server_at(ended),
            expires_at=min(last.expires_at, ended + self._database.interval_seconds) if failure else math.inf,
            next_due_at=last.next_due_at
            if failure
            else ended + self._database.interval_seconds + self._database.timeout_seconds,
        )
        return failure

    async def _read(self) -> ServerState:
        # The server may close an idle connection (restart, idle_session_timeout): reconnect, that is no failure.
        if self._connection is None or self._connection.is_closed():
            return await self._read_anew()
        server = await self._read_from(self._connection)
        # A session keeps the settings with which it began, and a pool's new connections get the others.
        if server.facts.session_settings != self._session_settings and not server.behind_pooler:
            await self._connection.close()
            return await self._read_anew()
        return server

    async def _read_anew(self) -> ServerState:
        # The arguments in a thread, because it reads files.
        self._connection = await connect(**await asyncio.to_thread(self._database.connect_arguments))
        server = await self._read_from(self._connection)
        self._session_settings = server.facts.session_settings
        return server

    async def _read_from(self, connection: ServerConnection) -> ServerState:
        return await connection.read(
            timeout_seconds=self._database.timeout_seconds,
            application_names_limit=self._database.application_names_limit,
            statements=self._database.statements,
            clock=self._clock,
        )

    def _log_transition(self, last: Failure | None, failure: Failure | None, delay: float) -> None:
        """Log a failure whose reason is new, a recovery, and each limitation once."""
        name = self._database.name
        if failure is not None:
            # A warning only if the reason is new; the counter has every failure.
            is_new = last is None or failure.reason != last.reason
            log = _logger.warning if is_new else _logger.debug
            log("database %r: %s: %s; next in %.1f s", name, failure.reason, failure.text, delay)
            return
        if last is not None:
            _logger.info("database %r: answers again", name)
        server = self._status.server
        if server and server.behind_pooler:
            self._warn_once(
                "database %r: behind a connection pooler: connections by application, idle_session_timeout and "
                "clients that wait in the pooler cannot be known; give the probe a DSN of the server itself",
                name,
            )
        if server and server.hidden_sessions:
            self._warn_once(
                "database %r: the state of %d sessions is unknown: %s",
                name,
                server.hidden_sessions,
                server.facts.why_hidden,
            )

    def _warn_once(self, message: str, *arguments: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _logger.warning(message, *arguments)


def backoff(failures: int, interval: float, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds to wait after that many failures in a row: doubling, bounded, half of it random."""
    first, longest = BACKOFF
    delay = min(first * 2.0 ** min(failures - 1, 32), max(longest, interval))
    return delay * uniform(0.5, 1.0)
