# SPDX-License-Identifier: Apache-2.0
"""From SQLAlchemy to the recorder: the only code that runs in the application's hot path.

SQLAlchemy's pool events do not fire before the wait, on a timeout or on a recycle, and a ``checkout`` listener makes
every checkout take SQLAlchemy's slow path. So the pool's own methods are wrapped, on the instance:

================== ==================================================================================
``connect``        a checkout begins, ends, fails, times out, is cancelled
``_do_return_conn`` a record goes back, by a return, an invalidation or a detach
``_invoke_creator`` a physical connection is opened
``_close_connection`` a physical connection is closed; why follows from its record's timestamps
``dispose``        what closes meanwhile is disposed of
``recreate``       the new pool is hooked like the old one
================== ==================================================================================

and of the events only ``invalidate``, ``soft_invalidate`` and ``close_detached`` are listened to, which say what no
method does. A pre-ping is seen by the dialect's method.

Each hook records in its own ``try``: a fault in recording is counted and never reaches the application, and what the
application's call raises is raised on, untouched.
"""

from __future__ import annotations

import functools
import gc
import inspect
import time
import weakref
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, Pool, QueuePool, SingletonThreadPool

from .catalogue import BUCKETS, CLOSE_REASONS, ERROR_REASONS
from .recorder import DISPOSE, ERROR, PLACE, SOFT_INVALIDATED
from .segment import (
    CHECKOUT_ERRORS,
    CHECKOUT_TIMEOUTS,
    DISPOSED,
    EMPTY,
    HAS_OVERFLOW,
    HOLD,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    MAX_OVERFLOW,
    NOT_APPLICABLE,
    PRE_PING,
    RECYCLE,
    REPLACED,
    SCRATCH,
    SIZE,
    SUM,
    TIMEOUT,
    UNTRACKED,
    WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from .recorder import Place, Recorder

try:
    # An asyncio engine runs each call in a greenlet of its own, all of them in one thread.
    from greenlet import getcurrent as _current
except ImportError:  # pragma: no cover - SQLAlchemy 2.1 without the asyncio extra
    from threading import current_thread as _current

HOOKS: Final = "_pool_exporter_hooks"

_RECYCLED, _POOL_INVALIDATED, _OVERFLOW, _UNPOOLED = map(
    CLOSE_REASONS.index, ("recycle", "pool_invalidated", "overflow", "unpooled")
)
_CONNECT_ERROR, _CANCELLED, _OTHER_ERROR = (CHECKOUT_ERRORS + at for at in range(len(ERROR_REASONS)))
_FIRST_BUCKET: Final = BUCKETS[0]
_CREATOR_NAME: Final = "Hooks._creator_hook.<locals>.invoke_creator"
# How long after attaching to a pool in use callers may turn up that were in the queue then, beside its timeout.
_LATECOMERS_SECONDS: Final = 60.0
_EARLIEST: Final = 0.001  # 0 and less say that there is no connection


def _connect_hook(hooks: Hooks, recorder: Recorder, original: Callable[[], Any]) -> Callable[[], Any]:
    take, give, clock = recorder.waiters.pop, recorder.waiters.append, recorder.clock
    wait_first, wait_sum, first_bucket = WAIT, WAIT + SUM, _FIRST_BUCKET

    def connect() -> Any:
        waiter, began = SCRATCH, 0.0
        try:
            try:
                waiter = take()
                recorder.block[waiter] = began = clock()
            except IndexError:  # no free slot yet
                waiter, began = recorder.enter(waiter)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
            connection = original()
        except BaseException as error:
            try:
                # No call before this store, here and below: an interrupt would leave a caller pending for ever.
                recorder.block[waiter] = 0.0
                recorder.checkout_failed(waiter, began, _error_field(error, connect.__code__))
            except Exception as fault:  # noqa: BLE001 - recording never raises
                recorder.fault(fault)
            raise
        try:
            recorder.block[waiter] = 0.0
            if waiter > UNTRACKED:
                give(waiter)
            elif waiter == UNTRACKED:
                recorder.leave(waiter)
            now = clock()
            record = connection._connection_record
            holder = record.fairy_ref
            place = record._pool_exporter_place
            # SingletonThreadPool hands one proxy out again to the thread that holds it: no new checkout.
            if place.holder is not holder:
                place.holder = holder
                wait = now - began
                # Most waits fall into the first bucket; the comparison costs a fifth of the search.
                bucket = wait_first if wait <= first_bucket else wait_first + bisect_left(BUCKETS, wait)
                block = recorder.block
                # straight line
                place.table[place.held] = now
                block[bucket] += 1.0
                block[wait_sum] += wait
                # end of straight line
        except Exception as error:  # noqa: BLE001 - a record never seen, or a fault
            hooks.checked_out_unseen(connection, began, error)
        return connection

    return connect


def _return_hook(hooks: Hooks, recorder: Recorder, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    clock = recorder.clock
    hold_first, hold_sum, first_bucket = HOLD, HOLD + SUM, _FIRST_BUCKET

    def _do_return_conn(record: Any) -> Any:
        vacant = False
        try:
            vacant = record.dbapi_connection is None
            place = record._pool_exporter_place
            # straight line: before the record goes back, since the next holder may have it at once, and before any
            # call, since an interrupt would leave it in use for ever
            since = place.table[place.held]
            place.table[place.held] = 0.0
            # end of straight line
            if since > 0.0 and not vacant:
                now = clock()
                held = now - since
                bucket = hold_first if held <= first_bucket else hold_first + bisect_left(BUCKETS, held)
                collected = place.holder() is None
                # Dropped before the proxy is, like SQLAlchemy's own, or its callback would be called each time.
                place.holder = None
                block = recorder.block
                # straight line
                block[bucket] += 1.0
                block[hold_sum] += held
                block[LAST_CHECKIN] = now
                if collected:
                    block[LEAKED_CHECKOUTS] += 1.0
                # end of straight line
            else:
                hooks.returned(record, place, since)
        except Exception as error:  # noqa: BLE001 - a record never seen, or a fault
            hooks.returned_unseen(record, error)
        finally:
            # Also if a signal handler raised in between: a record that does not go back is lost to the pool.
            result = original(record)
        if vacant:
            hooks.settle(record)
        return result

    return functools.update_wrapper(_do_return_conn, original)


class Hooks:
    """What is attached to one pool object. Its state is the recorder's, and the two marks that its pool is replaced."""

    __slots__ = (
        "__weakref__",
        "_disposing",
        "_installed",
        "_latecomers_until",
        "_listeners",
        "_retired",
        "handle",
        "pool",
        "recorder",
    )

    def __init__(self, pool: Pool, recorder: Recorder, handle: Any) -> None:
        self.pool = pool
        self.recorder = recorder
        self.handle = handle
        self._installed: dict[str, tuple[Any, bool, Any]] = {}
        self._listeners: list[tuple[str, Any]] = []
        self._disposing: list[object] = []
        self._retired = False
        self._latecomers_until = 0.0

    # -- attaching and restoring

    def attach(self, *, is_new: bool = False) -> None:
        """Put the hooks in; connections may be out and callers may be waiting, unless the pool is new."""
        pool, recorder = self.pool, self.recorder
        # A look at every object that the garbage collector knows.
        present = [] if is_new else list(_records(pool))
        # A caller on his way has a place in the pool's own count before there is a record of him.
        if (not is_new and _has_out(pool)) or any(
            record.in_use or not _keeps(pool, record) for record in present
        ):
            self._await_latecomers()
        self._install("_close_connection", self._close_hook(pool._close_connection))
        self._install("_invoke_creator", self._creator_hook(pool._invoke_creator))
        self._install("_do_return_conn", _return_hook(self, recorder, pool._do_return_conn))
        self._install("dispose", self._dispose_hook(pool.dispose))
        self._install("recreate", self._recreate_hook(pool.recreate))
        for name, listener in (
            ("invalidate", self._on_invalidate),
            ("soft_invalidate", self._on_soft_invalidate),
            ("close_detached", self._on_close_detached),
        ):
            self._listen(name, listener)
        if pool._pre_ping and "_dialect" in pool.__dict__:
            _PingTap.attach(pool._dialect, recorder)
        if present:
            self._adopt_present()
        self._install("connect", self._connect_hook())
        pool.__dict__[HOOKS] = self

    def detach(self) -> None:
        """Put everything back as it was."""
        pool = self.pool
        pool.__dict__.pop(HOOKS, None)
        for name, (hook, was_set, original) in self._installed.items():
            # Where somebody wrapped the hook in turn it stays as a part of his chain, and writes to nowhere.
            if pool.__dict__.get(name) is not hook:
                continue
            if was_set:
                setattr(pool, name, original)
            else:
                delattr(pool, name)
        for name, listener in self._listeners:
            _unlisten(pool, name, listener)
        _PingTap.detach(pool._dialect, self.recorder)

    def _install(self, name: str, hook: Any) -> None:
        pool = self.pool
        original = getattr(pool, name)
        self._installed[name] = (hook, name in pool.__dict__, original)
        setattr(pool, name, hook)

    def _listen(self, name: str, listener: Any) -> None:
        self._listeners.append((name, listener))
        _listen(self.pool, name, listener)

    def _connect_hook(self) -> Callable[..., Any]:
        original = self.pool.connect
        if not inspect.signature(original).parameters:
            return functools.update_wrapper(_connect_hook(self, self.recorder, original), original)

        # A subclass with arguments of its own.
        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            return _connect_hook(self, self.recorder, functools.partial(original, *args, **kwargs))()

        return connect

    # -- a pool that is in use already

    def _adopt_present(self) -> None:
        for record in _records(self.pool):
            # One that is neither is about to be handed out, or about to be collected.
            if record.in_use or record.dbapi_connection is not None or _keeps(self.pool, record):
                self._adopt(record)

    def _adopt(self, record: Any) -> Place:
        now = self.recorder.clock()
        age = max(0.0, time.time() - record.starttime)
        # A wall clock that was set can make it older than the monotonic one, which starts with the host.
        connected_at = EMPTY if record.dbapi_connection is None else max(now - age, _EARLIEST)
        place = self.recorder.adopt(record, connected_at=connected_at, retired=self._retired)
        if _is_out(record):
            self.recorder.hold_adopted(place, record, record.fairy_ref)
        return place

    def _await_latecomers(self) -> None:
        # Who waits in the queue now is past our hook; until the last of them is served, a listener sees them.
        timeout = getattr(self.pool, "_timeout", None) or 0.0
        self._latecomers_until = self.recorder.clock() + timeout + _LATECOMERS_SECONDS
        self._listen("checkout", self._on_checkout)

    def _on_checkout(self, _connection: object, record: Any, proxy: object) -> None:
        recorder = self.recorder
        try:
            if recorder.clock() > self._latecomers_until:
                for name, listener in self._listeners:
                    if name == "checkout":
                        _unlisten(self.pool, name, listener)
                return
            # Another reference than the record's: it may be on its way through our hook, which takes that one for no
            # new checkout.
            place = recorder.place_of(record) or self._adopt(record)
            recorder.hold_adopted(place, record, weakref.ref(proxy))
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)

    # -- the ways out of the ordinary

    def checked_out_unseen(self, connection: Any, began: float, fault: Exception) -> None:
        """Record a checkout of a record that was not seen to connect, or count the fault."""
        recorder = self.recorder
        try:
            record = connection._connection_record
            if recorder.stopped:
                return
            if recorder.place_of(record) is not None or not began:
                recorder.fault(fault)
                return
            recorder.checked_out(self._adopt(record), began)
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)

    def returned(self, record: Any, place: Place, since: float) -> None:
        """Record a return out of the ordinary."""
        self.recorder.returned(
            record, place, since, terminates=getattr(self.pool._dialect, "has_terminate", False)
        )

    def returned_unseen(self, record: Any, fault: Exception) -> None:
        """Record the return of a record that was not seen before, or count the fault."""
        try:
            if self.recorder.stopped:
                return
            if hasattr(record, PLACE):
                self.recorder.fault(fault)
            else:
                self._adopt(record)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)

    def settle(self, record: Any) -> None:
        """Free the place of a record that went back without a connection, if the pool did not keep it."""
        try:
            place = self.recorder.place_of(record)
            if place is not None and place.table[place.row] == EMPTY and not _keeps(self.pool, record):
                self.recorder.end(place)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)

    # -- physical connections

    def _creator_hook(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        recorder = self.recorder

        @functools.wraps(original)
        def invoke_creator(record: Any) -> Any:
            began = self._now()
            try:
                connection = original(record)
            except BaseException:
                try:
                    recorder.connect_failed(began)
                except Exception as error:  # noqa: BLE001 - recording never raises
                    recorder.fault(error)
                raise
            try:
                recorder.connected(record, connection, began, retired=self._retired)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
            return connection

        return invoke_creator

    def _now(self) -> float:
        try:
            return self.recorder.clock()
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)
            return 0.0

    def _close_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        @functools.wraps(original)
        def close_connection(connection: Any, *args: Any, **kwargs: Any) -> Any:
            place, reason, for_good = None, ERROR, False
            try:
                try:
                    place = recorder.place_of_connection(connection)
                    if place is not None:
                        terminate = kwargs.get("terminate", False)
                        reason = self._why(place, terminate=terminate)
                        # A record gets its finalizers last: without them its first connection failed to be set up.
                        for_good = not terminate or not hasattr(place(), "finalize_callback")
                except Exception as error:  # noqa: BLE001 - recording never raises
                    recorder.fault(error)
                finally:
                    # Also if a signal handler raised in between: SQLAlchemy takes it for closed.
                    result = original(connection, *args, **kwargs)
                return result
            finally:
                # An interrupted close is a close: SQLAlchemy drops the connection all the same.
                try:
                    if place is not None:
                        recorder.closed(place, reason, for_good=for_good)
                except Exception as error:  # noqa: BLE001 - recording never raises
                    recorder.fault(error)

        return close_connection

    def _why(self, place: Place, *, terminate: bool) -> int:
        """Say why a connection is being closed, in the order in which ``_ConnectionRecord`` decides it."""
        pool = self.pool
        if not terminate:
            if _current() in self._disposing:
                return DISPOSE
            return _OVERFLOW if isinstance(pool, QueuePool | SingletonThreadPool) else _UNPOOLED
        reason = place.reason_now()
        if reason is not None:
            return reason
        record: Any = place()
        if -1 < pool._recycle < time.time() - record.starttime:
            return _RECYCLED
        if pool._invalidate_time > record.starttime:
            return _POOL_INVALIDATED
        return SOFT_INVALIDATED if record._soft_invalidate_time > record.starttime else ERROR

    def _on_invalidate(self, _connection: object, record: Any, _error: object) -> None:
        try:
            self.recorder.invalidated(record, soft=False)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)

    def _on_soft_invalidate(self, _connection: object, record: Any, _error: object) -> None:
        try:
            self.recorder.invalidated(record, soft=True)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)

    def _on_close_detached(self, connection: object) -> None:
        try:
            self.recorder.closed_detached(connection)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)

    # -- replacement

    def _dispose_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def dispose(*args: Any, **kwargs: Any) -> Any:
            self.handle.notice_fork()
            caller, idle = _current(), self._idle_records()
            self._disposing.append(caller)
            try:
                result = original(*args, **kwargs)
                # Not if it raised: then SQLAlchemy goes on with what is left.
                self._retire(DISPOSED)
            finally:
                self._disposing.remove(caller)
                # An empty one is not closed, and need not be collected: SQLAlchemy 2.0 keeps it as long as the proxy
                # of the connection that was detached from it.
                for record in idle:
                    self.settle(record)
            return result

        return dispose

    def _idle_records(self) -> list[Any]:
        try:
            return _idle(self.pool)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)
            return []

    def _recreate_hook(self, original: Callable[..., Pool]) -> Callable[..., Pool]:
        @functools.wraps(original)
        def recreate(*args: Any, **kwargs: Any) -> Pool:
            self.handle.notice_fork()
            pool = original(*args, **kwargs)
            try:
                for name, listener in self._listeners:
                    _unlisten(pool, name, listener)
                self._retired = True
                self._retire(REPLACED)
                self.handle.follow(pool)
            except Exception as error:  # noqa: BLE001 - recording never raises
                self.recorder.fault(error)
            return pool

        return recreate

    def _retire(self, how: float) -> None:
        try:
            self.recorder.retire(how)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)


class _PingTap:
    """Stands in for a dialect's ping, and times it for whichever pool's connection is pinged.

    Pools can share a dialect, as those before and after ``dispose()`` do, so there is one for each dialect.
    """

    # From 2.0.5 on it is this one that decides whether an error means that the connection is dead.
    _METHODS = ("_do_ping_w_event", "do_ping")

    def __init__(self, dialect: Any, name: str) -> None:
        self._name = name
        self._original = getattr(dialect, name)
        self._was_set = name in dialect.__dict__
        self._recorders: list[weakref.ref[Recorder]] = []
        functools.update_wrapper(self, self._original)

    def __call__(self, dbapi_connection: Any) -> Any:
        recorder, place = self._find(dbapi_connection)
        if recorder is None or place is None:
            return self._original(dbapi_connection)
        began, alive = 0.0, None
        try:
            began = recorder.clock()
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)
        try:
            answer = self._original(dbapi_connection)
            alive = bool(answer)
        finally:
            try:
                recorder.pinged(place, began, alive=alive)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
        return answer

    def _find(self, connection: object) -> tuple[Recorder | None, Place | None]:
        for reference in self._recorders:
            recorder = reference()
            if recorder is None:
                continue
            try:
                place = recorder.place_of_connection(connection)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
                continue
            if place is not None:
                return recorder, place
        return None, None

    @classmethod
    def attach(cls, dialect: Any, recorder: Recorder) -> None:
        name = next(name for name in cls._METHODS if hasattr(dialect, name))
        tap = dialect.__dict__.get(name)
        if not isinstance(tap, cls):
            tap = cls(dialect, name)
            setattr(dialect, name, tap)
        others = [other for other in tap._recorders if other() not in {None, recorder}]
        tap._recorders = [*others, weakref.ref(recorder)]

    @classmethod
    def detach(cls, dialect: Any, recorder: Recorder) -> None:
        for name in cls._METHODS:
            tap = getattr(dialect, "__dict__", {}).get(name)
            if not isinstance(tap, cls):
                continue
            tap._recorders = [other for other in tap._recorders if other() not in {None, recorder}]
            if tap._recorders:
                continue
            if tap._was_set:
                setattr(dialect, name, tap._original)
            else:
                delattr(dialect, name)


def configuration(pool: Pool) -> dict[int, float]:
    """Return the limits of a pool by field; ``NOT_APPLICABLE`` (NaN) where there is none."""
    values = dict.fromkeys((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE), NOT_APPLICABLE)
    values[HAS_OVERFLOW] = float(isinstance(pool, QueuePool))
    values[PRE_PING] = float(pool._pre_ping)
    if pool._recycle > -1:
        values[RECYCLE] = float(pool._recycle)
    # pool_size=0 means no limit, and then SQLAlchemy sets max_overflow to -1, which means no limit, too.
    if isinstance(pool, QueuePool) and pool.size() > 0:
        values[SIZE] = float(pool.size())
        if pool._max_overflow > -1:
            values[MAX_OVERFLOW] = float(pool._max_overflow)
            if pool._timeout is not None:  # None waits for ever
                values[TIMEOUT] = float(pool._timeout)
    return values


def _error_field(error: BaseException, connect: CodeType) -> int:
    """Return the field that counts a checkout that raised ``error``."""
    if not isinstance(error, Exception):
        return _CANCELLED
    if _failed_to_connect(error, connect):
        return _CONNECT_ERROR
    return CHECKOUT_TIMEOUTS if isinstance(error, exc.TimeoutError) else _OTHER_ERROR


def _failed_to_connect(error: BaseException, connect: CodeType) -> bool:
    # Any exception can come out of a driver; that it came out of it is written in its traceback. What lies behind
    # another checkout, one that a listener or a creator makes of another pool, is that one's failure.
    frame = error.__traceback__ and error.__traceback__.tb_next
    while frame:
        name = frame.tb_frame.f_code.co_qualname
        if frame.tb_frame.f_code is connect:
            return False
        if name == _CREATOR_NAME:
            return True
        frame = frame.tb_next
    return False


def _records(pool: Pool) -> Iterator[Any]:
    """Yield the connection records of a pool, which keeps no list of those that are out."""
    if isinstance(pool, SingletonThreadPool) and not pool._all_conns:
        return
    for other in gc.get_referrers(pool):
        # Not isinstance(): that asks any object of the application's for its __class__.
        if issubclass(type(other), ConnectionPoolEntry):
            yield other


def _keeps(pool: Pool, record: Any) -> bool:
    """Say whether a pool holds on to a record that is not out."""
    if isinstance(pool, NullPool):
        return False
    if not isinstance(pool, QueuePool):
        return True
    # No generator: what a signal handler raises while one is closed is lost.
    for other in _idle(pool):  # noqa: SIM110
        if other is record:
            return True
    return False


def _has_out(pool: Pool) -> bool:
    # Not checkedout(): that waits for the queue's lock, whose holder may be in a finalizer that waits for ours.
    return isinstance(pool, QueuePool) and pool.size() - len(_idle(pool)) + pool._overflow > 0


def _is_out(record: Any) -> bool:
    # One without a connection is being reconnected, after a listener found it stale: its caller still waits.
    return record.in_use and record.dbapi_connection is not None


def _idle(pool: Pool) -> list[Any]:
    """Return the records in the queue of a pool that has one."""
    if not isinstance(pool, QueuePool):
        return []
    queue: Any = pool._pool
    return list(queue.queue if hasattr(queue, "queue") else queue._queue._queue)


def _listen(pool: Pool, name: str, listener: Any) -> None:
    # Not event.listen(): it appends to a deque that another thread may be iterating, in the middle of a listener of
    # the application's, and a deque that changes under its iterator raises there.
    collection = getattr(pool.dispatch, name).for_modify(pool.dispatch)
    collection.listeners = deque((*collection.listeners, listener))


def _unlisten(pool: Pool, name: str, listener: Any) -> None:
    collection = getattr(pool.dispatch, name)
    # list() is one call that no thread interrupts; and by identity, since a listener can compare as it likes.
    present = list(collection.listeners)
    collection.listeners = deque([other for other in present if other is not listener])
