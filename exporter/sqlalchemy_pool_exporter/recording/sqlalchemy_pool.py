# SPDX-License-Identifier: Apache-2.0
"""Facts about SQLAlchemy's pools and connection records that only its private names tell.

``UNPUBLISHED_NAMES`` lists every private name that this project uses. Only this module, the hot path (``checkout_cy``,
``checkin_cy`` and ``ping_cy``) and ``instrument_all()`` use them. A test checks both, and that the installed SQLAlchemy
has each name.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy.pool import (
    AssertionPool,
    ConnectionPoolEntry,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    base,
)

from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS
from sqlalchemy_pool_exporter.segment.block import (
    HAS_OVERFLOW,
    IS_ASYNC,
    MAX_OVERFLOW,
    NOT_APPLICABLE,
    PRE_PING,
    RECYCLE,
    SIZE,
    TIMEOUT,
)
from sqlalchemy_pool_exporter.segment.own_errors import is_own

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection, Engine

# By the object that has the name. The queue of a pool is one of two kinds, for threads or for asyncio.
UNPUBLISHED_NAMES: Final = {
    "pool": (
        "_close_connection",
        "_dialect",
        "_do_return_conn",
        "_invalidate_time",
        "_invoke_creator",
        "_orig_logging_name",
        "_pre_ping",
        "_recycle",
    ),
    "QueuePool": ("_max_overflow", "_overflow", "_pool", "_timeout"),
    "SingletonThreadPool": ("_all_conns",),
    "AssertionPool": ("_conn",),
    "queue of threads": ("queue",),
    "queue of asyncio": ("_queue",),
    "record": (
        "_ConnectionRecord__pool",
        "_soft_invalidate_time",
        "fairy_ref",
        "finalize_callback",
        "starttime",
    ),
    "proxy": ("_connection_record",),
    "connection": ("_dbapi_connection", "_handle_dbapi_exception"),
    "dialect": ("_has_events",),
    "events of a dialect": ("_event_names",),
    "copy of an engine": ("_proxied",),
    "listeners of an event": ("for_modify", "listeners"),
    "module of pools": ("_ConnectionFairy", "_ConnectionRecord", "_finalize_fairy"),
    "URL": ("_instantiate_plugins",),
    # Not listed, because not every release has them: RECORDS_OUT, and the private one of PING_METHODS.
}
# The methods of a pool that are wrapped.
CLOSE_CONNECTION: Final = "_close_connection"
INVOKE_CREATOR: Final = "_invoke_creator"
RETURN_CONNECTION: Final = "_do_return_conn"
# The ping method of a dialect; the first one that the dialect has is wrapped. Since SQLAlchemy 2.0.5 the private one
# decides whether an error means that the connection is dead.
PING_METHODS: Final = ("_do_ping_w_event", "do_ping")
# The method of a connection record that connects. A test makes a connection fail, and looks for it in the traceback.
CONNECT_FUNCTION: Final = "__connect"
# The method of a connection that handles the error of a statement, and asks the dialect about it.
HANDLE_ERROR_FUNCTION: Final = "_handle_dbapi_exception"

# Where the records of all pools are that are out: in a table of SQLAlchemy 2.0; in 2.1 each proxy has a finalizer, and
# the record is among its arguments.
RECORDS_OUT: Final = ("_strong_ref_connection_records", "_finalizer")

_RECYCLED, _POOL_INVALIDATED, _SOFT_INVALIDATED, _ERROR = map(
    CLOSE_REASONS.index, ("recycle", "pool_invalidated", "soft_invalidated", "error")
)


# -- the pool


def configuration(pool: Pool) -> dict[int, float]:
    """Return the limits of a pool by field; ``NOT_APPLICABLE`` (NaN) for a limit that it does not have."""
    values = dict.fromkeys((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE), NOT_APPLICABLE)
    values[HAS_OVERFLOW] = float(isinstance(pool, QueuePool))
    # engine_from_config() leaves the string of the configuration here, and SQLAlchemy takes any string for true.
    values[PRE_PING] = float(bool(pool._pre_ping))
    values[IS_ASYNC] = _is_async(pool)
    if pool._recycle > -1:
        values[RECYCLE] = float(pool._recycle)
    # pool_size=0 means no limit. SQLAlchemy then sets max_overflow to -1, which also means no limit.
    if isinstance(pool, QueuePool) and pool.size() > 0:
        values[SIZE] = float(pool.size())
        if pool._max_overflow > -1:
            values[MAX_OVERFLOW] = float(pool._max_overflow)
            if pool._timeout is not None:  # None: a caller waits for ever
                values[TIMEOUT] = float(pool._timeout)
    return values


def _is_async(pool: Pool) -> float:
    """Return 1 if a pool is for asyncio, -1 if it is for threads, and 0 if that is not known."""
    is_async = getattr(pool._dialect, "is_async", None)  # as the pool is, if it was made without an engine
    if is_async is None or "gevent.monkey" in sys.modules or "eventlet.patcher" in sys.modules:
        return 0.0
    return 1.0 if is_async else -1.0


def dialect_of(pool: Pool) -> Any:
    """Return the dialect of a pool; without an engine it can be a stub."""
    return pool._dialect


def logging_name(pool: Pool) -> str | None:
    """Return the ``logging_name`` that the application gave a pool."""
    name = getattr(pool, "_orig_logging_name", None)
    return str(name) if name else None


def pings(pool: Pool) -> bool:
    """Return whether a pool pings a connection before it hands it out."""
    return bool(pool._pre_ping) and "_dialect" in pool.__dict__


def engine_with_pool(engine: Engine) -> Engine:
    """Return the engine that has the pool: the argument, or the engine that the argument is a copy of.

    A copy, made by ``execution_options()``, always has the pool of its original.
    """
    while "pool" not in vars(engine) and hasattr(engine, "_proxied"):
        engine = engine._proxied
    return engine


def timeout_of(pool: Pool) -> float:
    """Return how many seconds a caller waits in the queue of a pool; 0 if there is no queue or no limit."""
    return getattr(pool, "_timeout", None) or 0.0


def detaches_collected(pool: Pool) -> bool:
    """Return whether SQLAlchemy detaches a connection whose proxy was garbage-collected."""
    return bool(getattr(pool._dialect, "is_async", False))


def closes_collected(pool: Pool) -> bool:
    """Return whether SQLAlchemy also closes a connection that it detached for that reason."""
    return bool(getattr(pool._dialect, "has_terminate", False))


def records_of(pool: Pool) -> list[Any]:
    """Return the connection records of a pool, except one that a caller is about to get or that is about to be closed.

    If SQLAlchemy or the pool has no list of them that is known here, the garbage collector finds them. It looks at
    every object of the process: 112 ms for 3 million.
    """
    kept, out = _records_kept(pool), _records_out(pool)
    if kept is not None and out is not None and not _misses_any(pool, out):
        return list({id(record): record for record in (*kept, *out)}.values())
    # Not isinstance(): it reads __class__, which runs code of the application for some objects.
    return [other for other in gc.get_referrers(pool) if issubclass(type(other), ConnectionPoolEntry)]


def _records_kept(pool: Pool) -> list[Any] | None:
    """Return the records that a pool itself has; None if it is not known where it has them."""
    if isinstance(pool, QueuePool):
        return idle_records(pool)
    if isinstance(pool, NullPool):
        return []
    if isinstance(pool, SingletonThreadPool):
        return list(pool._all_conns)
    if isinstance(pool, StaticPool):
        # Not the attribute itself: reading it connects.
        return [record for record in (vars(pool).get("connection"),) if record is not None]
    if isinstance(pool, AssertionPool):
        return [record for record in (pool._conn,) if record is not None]
    return None


def _records_out(pool: Pool) -> list[Any] | None:
    """Return the records of a pool that are out, also those that it has forgotten; None if they cannot be found."""
    table, finalizer = RECORDS_OUT
    try:
        # Each list() is one call, so no other thread changes the table meanwhile.
        if hasattr(base, table):
            records = list(getattr(base, table).values())
        elif hasattr(base._ConnectionFairy, finalizer):
            # Python's table of all finalizers. Not their peek(), which refers to the proxy: if its caller dropped it
            # meanwhile, this thread would return the connection.
            finalizers: Any = weakref.finalize
            records = [
                one.args[1] for one in list(finalizers._registry.values()) if one.func is base._finalize_fairy
            ]
        else:
            return None
        return [record for record in records if record._ConnectionRecord__pool is pool]
    except (AttributeError, IndexError) as error:
        if not is_own(error):
            raise
        return None


def _misses_any(pool: Pool, out: list[Any]) -> bool:
    """Return whether a record may be missing from those that are out, because the pool counts more.

    SQLAlchemy 2.0 takes a record out of its table before it resets the connection, which can take long. In 2.1 only
    those are missing that a caller is about to get, which have no holder yet.
    """
    return hasattr(base, RECORDS_OUT[0]) and _count_out(pool) > sum([record.in_use for record in out])


def keeps(pool: Pool, record: Any) -> bool:
    """Return whether a pool keeps a record that is not checked out."""
    if isinstance(pool, NullPool):
        return False
    if not isinstance(pool, QueuePool):
        return True
    # Not a generator: an exception of a signal handler is lost if it is raised while a generator closes.
    for other in idle_records(pool):  # noqa: SIM110
        if other is record:
            return True
    return False


def shares_its_connection(pool: Pool) -> bool:
    """Return whether a pool hands one connection to several callers at once."""
    return isinstance(pool, StaticPool)


def may_be_connecting(pool: Pool) -> bool:
    """Return whether callers may be inside ``connect()``."""
    # A NullPool counts nothing.
    return isinstance(pool, NullPool) or _count_out(pool) > 0


def _count_out(pool: Pool) -> int:
    """Return how many connections a pool counts as out or about to be handed out, if it counts them."""
    if not isinstance(pool, QueuePool):
        return 0
    # Not checkedout(): it takes the queue's lock. The thread that has that lock may be in a finalizer that waits for
    # our lock.
    return pool.size() - len(idle_records(pool)) + pool._overflow


def idle_records(pool: Pool) -> list[Any]:
    """Return the records in the queue of a pool that has one."""
    # Without the GIL another thread can change the deque while list() iterates over it, but not while it is copied.
    return list(_idle(pool).copy()) if isinstance(pool, QueuePool) else []


def _idle(pool: QueuePool) -> deque[Any]:
    """Return what is in the queue of a pool; the queue has the same object for ever."""
    queue: Any = pool._pool
    idle: deque[Any] = queue.queue if hasattr(queue, "queue") else queue._queue._queue
    return idle


class FillLevel(NamedTuple):
    """A pool is at the level if ``fields["_overflow"] - len(idle) >= least``: two looks, which take no lock.

    ``fields`` are the pool's attributes, where a compiled function finds one in a third of the time.
    """

    fields: dict[str, Any]
    idle: Collection[Any]
    least: int


def fill_level(pool: Pool, share: float) -> FillLevel | None:
    """Return the level at which so large a share of a pool's capacity is in use, or about to be.

    The limits are those of now. A pool whose overflow has no limit has the capacity ``pool_size``.

    Returns:
        None if the share is 0, or the pool has no queue: it keeps no connection, or one for each thread, or one.
    """
    fields = vars(pool)
    if not share or not isinstance(pool, QueuePool) or "_overflow" not in fields:
        return None
    size = pool.size()
    # Rounded down, so that a small pool has the site of each checkout.
    least = math.floor(round(share * (size + max(pool._max_overflow, 0)), 6))
    # The pool counts its overflow from the negative of its size, and idle connections with those in use.
    return FillLevel(fields, _idle(pool), least - size)


# -- a connection record


def record_of(proxy: Any) -> Any:
    """Return the record of the connection that a checkout returned."""
    return proxy._connection_record


def is_of(pool: Pool, record: Any) -> bool:
    """Return whether a record is one of this pool, and not of a copy of it, which has the same listeners."""
    return getattr(record, "_ConnectionRecord__pool", pool) is pool


def has_connection(record: Any) -> bool:
    """Return whether a record has a connection."""
    return record.dbapi_connection is not None


def holds(record: Any, connection: object) -> bool:
    """Return whether a record has this very connection; the id of an object can be reused."""
    return record is not None and record.dbapi_connection is connection


def is_out(record: Any) -> bool:
    """Return whether a record's connection is checked out."""
    # In use without a connection: SQLAlchemy reconnects it because a listener found it stale. Its caller still waits.
    return record.in_use and record.dbapi_connection is not None


def holder_of(record: Any) -> Any:
    """Return SQLAlchemy's weak reference to the proxy that the caller got, or None."""
    return record.fairy_ref


def age_of(record: Any) -> float:
    """Return how many seconds ago the connection of a record was opened, by the wall clock."""
    seconds: float = time.time() - record.starttime
    return max(0.0, seconds)


def is_set_up(record: Any) -> bool:
    """Return whether the first connection of a record was set up."""
    # SQLAlchemy sets this attribute after the connection is set up.
    return hasattr(record, "finalize_callback")


def why_terminated(pool: Pool, record: Any) -> int:
    """Return why a record closes its connection, an index into ``CLOSE_REASONS``.

    The checks are in the order of SQLAlchemy's ``_ConnectionRecord``.
    """
    if -1 < pool._recycle < time.time() - record.starttime:
        return _RECYCLED
    if pool._invalidate_time > record.starttime:
        return _POOL_INVALIDATED
    return _SOFT_INVALIDATED if record._soft_invalidate_time > record.starttime else _ERROR


# -- listeners


def passes_on_timeouts(dialect: Any) -> bool:
    """Return whether a timeout of the driver itself is none of the driver's errors, so that SQLAlchemy passes it on."""
    return getattr(dialect, "driver", "") == "asyncpg"


def proxy_of(connection: Connection | None) -> Any:
    """Return the pool's proxy that an engine's connection has; None if it has none any more."""
    return getattr(connection, "_dbapi_connection", None)


def listen_to_errors(dialect: Any, listener: Any) -> bool:
    """Add a listener of ``handle_error`` to a dialect that may be in use; return whether it has had listeners."""
    had_listeners = "_has_events" in dialect.__dict__
    listen(dialect, "handle_error", listener)
    dialect._has_events = True
    return had_listeners


def unlisten_to_errors(dialect: Any, listener: Any, *, had_listeners: bool) -> None:
    """Undo ``listen_to_errors()``."""
    unlisten(dialect, "handle_error", listener)
    dispatch = dialect.dispatch
    if not had_listeners and not any(list(getattr(dispatch, name)) for name in dispatch._event_names):
        dialect.__dict__.pop("_has_events", None)


def listen(pool: Pool, name: str, listener: Any) -> None:
    """Add a listener to a pool (or a dialect) that may be in use."""
    # Not event.listen(): it appends to a deque. If another thread is iterating that deque to call the application's
    # listeners, the append makes the iteration raise in the application.
    collection = getattr(pool.dispatch, name).for_modify(pool.dispatch)
    collection.listeners = deque((*collection.listeners, listener))


def unlisten(pool: Pool, name: str, listener: Any) -> None:
    """Remove a listener from a pool (or a dialect) that may be in use."""
    collection = getattr(pool.dispatch, name)
    # list() is one call, so no other thread changes the deque meanwhile. Compare by identity, because a listener can
    # define its own equality.
    present = list(collection.listeners)
    # It is not there if a time limit struck before it was added, and a pool without listeners has no deque.
    kept = [other for other in present if other is not listener]
    if len(kept) < len(present):
        collection.listeners = deque(kept)
