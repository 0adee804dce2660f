# SPDX-License-Identifier: Apache-2.0
"""Who holds which connection, and what the database server says of it: one record for each connection checked out.

The application's side comes from the segments. The server's side comes from the sidecar's probes; without a probe of
its database, a connection's state in the server is unknown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .pausing import pause
from .segment.held import held, idle

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from .metrics import HeldState
    from .segment.directory import Fleet
    from .segment.held import Held
    from .segment.snapshot import Snapshot
    from .segment.worker import Worker


@dataclass(frozen=True, slots=True)
class Session:
    """What a database server says of one session. An age is None if it does not apply or is not known."""

    state: HeldState
    wait_event: str  # what it waits for, as type:event; empty if it does not wait
    state_seconds: float | None  # how long it has been in its state
    transaction_seconds: float | None  # how long ago its transaction began
    statement_seconds: float | None  # how long ago its statement began, or its last one
    application: str  # its application_name
    statement: str  # without its literals; empty unless the configuration asks for statements
    blocked_by: tuple[
        int, ...
    ]  # processes that have the lock it waits for, or wait for it before; 0 is a prepared one


class ServerLimits(NamedTuple):
    """What a database server allows its clients."""

    connections: int  # that ordinary roles can have at once
    idle_session_timeout_seconds: float | None  # None if it is off or not known
    is_behind_pooler: bool


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """What the last probes say of a server as a whole."""

    failure: str = ""  # why the last probe failed; empty if it did not
    failing_since: float = 0.0  # since when all have failed, in seconds of ``time.monotonic()``
    started_at: float = 0.0  # Unix time of the server's start; 0 if that is not known
    refuses_writes: bool = False  # although the pools are not said to only read
    is_in_recovery: bool = False
    read_only_setting: str = (
        "default_transaction_read_only"  # what makes it refuse writes, outside of recovery
    )


class ProbedServer(Protocol):
    """What the last probe of a database read from its server."""

    @property
    def database(self) -> str:
        """The name of the probed database in the configuration."""

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the pools that connect to it, or their labels."""

    @property
    def identity(self) -> str:
        """Which server it is: two databases can be on one server."""

    @property
    def asked_at(self) -> float:
        """When the server was asked, in seconds of ``time.monotonic()``."""

    @property
    def limits(self) -> ServerLimits | None:
        """What the server allows; None if that is not known now."""

    @property
    def health(self) -> ServerHealth | None:
        """What is known of the server as a whole; None if nothing is."""

    def session_of(self, connection: Held) -> Session | None:
        """Return the session that serves a connection, whoever holds it; None if that is not certain."""

    def session(self, pid: int) -> Session | None:
        """Return the session of a process of the server."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that another one waits for. ``pool`` and what follows is empty if it is none of these pools'."""

    server_pid: int  # 0: a prepared transaction, which has no session
    state: HeldState
    application: str
    pool: str = ""
    worker: str = ""
    pid: str = ""
    site: str = ""  # empty as well if the connection is idle in its pool, or was when the server was asked


@dataclass(frozen=True, slots=True)
class HeldConnection:
    """A connection that is checked out. What is not known is empty, None or 0."""

    pool: str  # the label of the pool
    worker: str  # the number of the worker
    pid: str  # of the worker's process
    site: str  # where the application checked it out: module:function:line, or "other"
    holder: str  # the name of the thread or task that did
    label: str  # what the application said that it was doing
    held_seconds: float
    waits_seconds: float | None  # how long its holder has waited for another connection of the pool
    server_pid: int  # of what serves it in the database server
    database: str = ""  # the probed database to which its pool belongs
    server_state: HeldState = "unknown"
    wait_event: str = ""
    state_seconds: float | None = None
    transaction_seconds: float | None = None
    statement_seconds: float | None = None
    statement: str = ""
    blocked_by: tuple[Blocker, ...] = ()
    asked_seconds_ago: float | None = None  # the age of what the server said; None if it said nothing


class _Ours:
    """The connections of all pools by the server's process that serves them."""

    def __init__(self) -> None:
        self._by_process: dict[tuple[str, int], Blocker] = {}

    def add(self, found: _Found, server: ProbedServer, session: Session) -> None:
        one = found.connection
        self._by_process[server.identity, one.server_pid] = Blocker(
            one.server_pid,
            session.state,
            session.application,
            found.label,
            found.worker.number,
            found.pid,
            one.site if 0.0 < one.since <= server.asked_at else "",
        )

    def blocker(self, server: ProbedServer, pid: int) -> Blocker:
        known = self._by_process.get((server.identity, pid))
        if known is not None:
            return known
        session = server.session(pid)
        return (
            Blocker(pid, "unknown", "")
            if session is None
            else Blocker(pid, session.state, session.application)
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """A connection, and whose it is."""

    label: str
    worker: Worker
    server: ProbedServer | None  # to which its pool connects
    connection: Held

    @property
    def pid(self) -> str:
        process = self.worker.facts.process
        return process.pid if process is not None else ""


def held_connections(
    fleet: Fleet,
    *,
    now: float,
    servers: Iterable[ProbedServer] = (),
    pools: Container[str] | None = None,
    most: int | None = None,
) -> list[HeldConnection]:
    """Return a record for each connection that is checked out, the one that is held longest first.

    Args:
        fleet: what the segments say.
        now: seconds of ``time.monotonic()``.
        servers: what the last probes said.
        pools: the labels of the pools; None for all.
        most: how many records at most; None for all.
    """
    out: list[tuple[_Found, Session | None]] = []
    ours = _Ours()
    for found in _connections(fleet, servers, pools):
        server = found.server
        session = server.session_of(found.connection) if server is not None else None
        if server is not None and session is not None:
            ours.add(found, server, session)
            if found.connection.since > server.asked_at:
                session = None  # what the server said is about an earlier holder, or none
        if found.connection.since and (pools is None or found.label in pools):
            out.append((found, session))
    out.sort(key=lambda one: one[0].connection.since)
    return [_record(found, session, ours, now) for found, session in out[:most]]


def held_states(fleet: Fleet, servers: Iterable[ProbedServer]) -> dict[str, Counter[HeldState]]:
    """Return how many connections are checked out by state, for the label of each pool of these servers that lives.

    A record for each connection would take several times as long.
    """
    counts: dict[str, Counter[HeldState]] = {}
    for label, _, server, snapshot in _pools(fleet, servers):
        if server is None:
            continue
        states = counts.setdefault(label, Counter())
        for connection in held(snapshot):
            session = server.session_of(connection) if connection.since <= server.asked_at else None
            states["unknown" if session is None else session.state] += 1
    return counts


def _connections(
    fleet: Fleet, servers: Iterable[ProbedServer], pools: Container[str] | None
) -> Iterator[_Found]:
    for label, worker, server, snapshot in _pools(fleet, servers):
        if server is not None or pools is None or label in pools:
            pause()
            for connection in held(snapshot):
                yield _Found(label, worker, server, connection)
            # Those in the pool can block others: a session keeps its advisory locks.
            for connection in idle(snapshot) if server is not None else ():
                yield _Found(label, worker, server, connection)


def servers_by_label(fleet: Fleet, servers: Iterable[ProbedServer]) -> dict[str, ProbedServer]:
    """Return the server to which each live pool connects, by the label of the pool."""
    return {label: server for label, _, server, _ in _pools(fleet, servers) if server is not None}


def _pools(
    fleet: Fleet, servers: Iterable[ProbedServer]
) -> Iterator[tuple[str, Worker, ProbedServer | None, Snapshot]]:
    """Yield the live pools, each with its label and the server to which it connects."""
    by_pool = {pool: server for server in servers for pool in server.pools}
    for worker in fleet.live:
        for pool in worker.pools:
            if pool.snapshot.is_active:
                label = fleet.labels[pool.identity]
                # The label first: pools of one default name that differ can connect to different servers.
                yield label, worker, by_pool.get(label) or by_pool.get(pool.name), pool.snapshot


def _record(found: _Found, session: Session | None, ours: _Ours, now: float) -> HeldConnection:
    one, texts, server = found.connection, found.worker.texts, found.server
    bare = HeldConnection(
        pool=found.label,
        worker=found.worker.number,
        pid=found.pid,
        site=one.site,
        holder=texts.holder(one.holder),
        label=texts.label(one.label),
        held_seconds=max(0.0, now - one.since),
        waits_seconds=max(0.0, now - one.waits_since) if one.waits_since else None,
        server_pid=one.server_pid,
        database=server.database if server is not None else "",
    )
    if server is None or session is None:
        return bare
    return replace(
        bare,
        server_state=session.state,
        wait_event=session.wait_event,
        state_seconds=session.state_seconds,
        transaction_seconds=session.transaction_seconds,
        statement_seconds=session.statement_seconds,
        statement=session.statement,
        blocked_by=tuple(ours.blocker(server, pid) for pid in session.blocked_by),
        asked_seconds_ago=max(0.0, now - server.asked_at),
    )
