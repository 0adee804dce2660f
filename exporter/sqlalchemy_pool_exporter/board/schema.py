# SPDX-License-Identifier: Apache-2.0
"""What ``/api/v1/pools`` answers, as types. The page and the terminal show the same data.

Numbers are JSON's; ``None`` is null and says that a limit does not apply or a value is not known. Seconds are
fractions. A later release may add keys; it changes the meaning of none without another ``VERSION``.
"""

from __future__ import annotations

from typing import Final, Literal, TypedDict

VERSION: Final = 1

Severity = Literal["critical", "warning", "info"]
ConditionKind = Literal[
    "loop_blocked",
    "self_deadlock",
    "stuck",
    "waiting",
    "slow_connect",
    "timeouts",
    "connect_errors",
    "nested",
    "held_long",
    "blocked",
    "idle_in_transaction",
    "leaked",
    "undisposed",
    "dead_connections",
    "database_down",
    "database_restarted",
    "read_only",
    "full",
    "unreadable",
    "no_process",
]
ServerState = Literal["active", "idle_in_transaction", "idle", "waiting_for_lock", "unknown"]


class Limits(TypedDict):
    """The configuration of the live pools: sizes are sums; of the other limits the smallest counts."""

    size: float | None
    max_overflow: float | None
    capacity: float | None  # most connections at once: size + max_overflow; null if there is no limit
    timeout_seconds: float | None
    recycle_seconds: float | None
    pre_ping: bool


class State(TypedDict):
    """The connections and callers of the live pools now."""

    in_use: int
    idle: int
    overflow: int  # beyond size
    waiting: int  # callers of connect() under way
    empty_slots: int
    untracked: int
    longest_held_seconds: float
    longest_wait_seconds: float
    oldest_connection_seconds: float
    last_return: float | None  # Unix time of the last return to the pool


class Counters(TypedDict):
    """Totals over all processes that ever ran. They only grow, so two answers give rates."""

    checkouts: float
    checkins: float
    checkout_timeouts: float
    checkout_errors: dict[str, float]  # by reason
    waits: float  # checkouts that ended, failed ones too, and the seconds that they took
    wait_seconds: float
    holds: float  # returns, and the seconds from checkout to return
    hold_seconds: float
    connects: float
    connect_errors: float
    closes: dict[str, float]  # by reason
    errors: dict[str, float]  # by layer: pool, connect, ping or statement
    overflow_opened: float
    nested_checkouts: float
    leaked_checkouts: float
    undisposed: dict[str, float]  # pools that ended with connections open, by when


class Rates(TypedDict):
    """What the endpoint saw between two of its own reads, for each second."""

    over_seconds: float
    checkouts: float
    checkout_timeouts: float
    checkout_errors: float
    connects: float
    connect_errors: float
    closes: float
    closes_by_reason: dict[str, float]
    errors: dict[str, float]  # by layer: pool, connect, ping or statement
    leaked_checkouts: float
    undisposed: float  # pools
    mean_wait_seconds: float | None  # null if no checkout ended
    mean_hold_seconds: float | None  # null if none was returned


class Condition(TypedDict):
    """Something that is so now and that an engineer wants to know, in words."""

    kind: ConditionKind
    severity: Severity
    pool: str | None  # null if it concerns all
    text: str


class Worker(TypedDict):
    """The pools of one name in one process."""

    worker: str  # number of its file; pid… for a process that is in no directory
    pid: str | None
    program: str | None
    started: str | None
    limits: Limits
    state: State
    self_deadlocked: bool
    event_loop_lag_seconds: float | None  # the most of the last minute; null if no event loop uses the pools
    checkouts: float
    checkout_timeouts: float


class Site(TypedDict):
    """A place in the application that checks connections out: ``module:function:line``, or ``other``."""

    site: str
    held: int
    longest_held_seconds: float
    checkouts: float
    holds: float  # returns, and the seconds from checkout to return
    hold_seconds: float
    nested_checkouts: float


class Pool(TypedDict):
    """All pools of one name, in all processes."""

    name: str
    severity: Severity | None  # of its worst condition
    info: list[dict[str, str]]  # pool_class, dialect and driver
    instances: int  # live pools
    limits: Limits | None  # null if no live process has such a pool
    state: State
    counters: Counters
    rates: Rates | None  # null until the endpoint has read twice
    conditions: list[Condition]
    workers: list[Worker]  # the fullest first
    workers_left_out: int
    sites: list[Site]  # those that hold most first


class Blocker(TypedDict):
    """A session of the database server that another one waits for."""

    server_pid: int  # 0: a prepared transaction, which has no session
    state: ServerState
    application: str | None  # its application_name
    pool: str | None  # null, like what follows, if it serves none of these pools
    worker: str | None
    pid: str | None
    site: str | None  # null as well if the connection is idle in its pool


class ServerSide(TypedDict):
    """What the database server says of a held connection."""

    state: ServerState
    wait_event: str | None  # type:event
    state_seconds: float | None
    transaction_seconds: float | None
    statement_seconds: float | None
    statement: str | None  # without its literals; null unless the configuration asks for statements
    blocked_by: list[Blocker]
    asked_seconds_ago: float


class Held(TypedDict):
    """A connection that is checked out."""

    pool: str
    worker: str
    pid: str | None
    program: str | None
    site: str
    holder: str | None  # name of the thread or asyncio task
    label: str | None  # what the application said it was doing
    since: float  # Unix time
    held_seconds: float
    waits_seconds: float | None  # its holder waits so long for another connection of the pool
    server_pid: int | None
    server: ServerSide | None  # null if nothing is known


class Finding(TypedDict):
    """A mistake in how a pool is configured or used, found by a rule of the audit."""

    rule: str
    severity: Severity
    pool: str | None
    text: str
    remedy: str


class Processes(TypedDict):
    """How many processes there are."""

    live: int
    parent: int  # they only started others
    gone: int


class Totals(TypedDict):
    """Sums over all pools, also over those that are left out."""

    pools: int
    critical: int  # pools
    warning: int  # pools
    in_use: int
    idle: int
    waiting: int
    longest_wait_seconds: float
    longest_held_seconds: float


class Board(TypedDict):
    """The answer."""

    version: int
    exporter: str  # version of the package
    time: float  # Unix time of the read
    note: str | None  # why there may be no pools
    processes: Processes
    unreadable: dict[str, int]  # files of processes that are left out, by reason
    totals: Totals
    conditions: list[Condition]  # of all pools, the worst first
    conditions_left_out: int
    findings: list[Finding]  # of all pools that are asked for
    findings_left_out: int
    pools_unprobed: int  # of these, pools of whose server no probe told: rules that need it could not look
    pools: list[Pool]  # the worst first
    pools_left_out: int
    held: list[Held]  # the oldest first
    held_left_out: int
