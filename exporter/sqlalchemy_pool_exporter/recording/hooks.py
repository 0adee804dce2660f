# SPDX-License-Identifier: Apache-2.0
"""From SQLAlchemy to the recorder: what is put into a pool, and how it is taken out again.

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
import inspect
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import QueuePool, SingletonThreadPool

from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS
from sqlalchemy_pool_exporter.segment.block import DISPOSED, EMPTY, REPLACED

from .checkout import connect_hook, return_hook
from .connection_row import PLACE
from .ping import PingTap
from .recorder import DISPOSE, ERROR, SOFT_INVALIDATED
from .sqlalchemy_pool import has_out, idle_records, is_out, keeps, listen, records_of, unlisten

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import Pool

    from .connection_row import Place
    from .recorder import Recorder

try:
    # An asyncio engine runs each call in a greenlet of its own, all of them in one thread.
    from greenlet import getcurrent as _current
except ImportError:  # pragma: no cover - SQLAlchemy 2.1 without the asyncio extra
    from threading import current_thread as _current

# The mutable state: what is attached, by the address of its pool; the hooks in the pool keep it alive. Not on the pool,
# where whoever compares the attributes of pools would find it.
_attached: weakref.WeakValueDictionary[int, Hooks] = weakref.WeakValueDictionary()

_RECYCLED, _POOL_INVALIDATED, _OVERFLOW, _UNPOOLED = map(
    CLOSE_REASONS.index, ("recycle", "pool_invalidated", "overflow", "unpooled")
)
# How long after attaching to a pool in use callers may turn up that were in the queue then, beside its timeout.
_LATECOMERS_SECONDS: Final = 60.0
_EARLIEST: Final = 0.001  # 0 and less say that there is no connection


def hooks_of(pool: Pool) -> Hooks | None:
    """Return what is attached to a pool, or None."""
    hooks = _attached.get(id(pool))
    return hooks if hooks is not None and hooks.pool is pool else None


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
        present = [] if is_new else list(records_of(pool))
        # A caller on his way has a place in the pool's own count before there is a record of him.
        if (not is_new and has_out(pool)) or any(
            record.in_use or not keeps(pool, record) for record in present
        ):
            self._await_latecomers()
        self._install("_close_connection", self._close_hook(pool._close_connection))
        self._install("_invoke_creator", self._creator_hook(pool._invoke_creator))
        self._install("_do_return_conn", return_hook(self, recorder, pool._do_return_conn))
        self._install("dispose", self._dispose_hook(pool.dispose))
        self._install("recreate", self._recreate_hook(pool.recreate))
        for name, listener in (
            ("invalidate", self._on_invalidate),
            ("soft_invalidate", self._on_soft_invalidate),
            ("close_detached", self._on_close_detached),
        ):
            self._listen(name, listener)
        if pool._pre_ping and "_dialect" in pool.__dict__:
            PingTap.attach(pool._dialect, recorder)
        if present:
            self._adopt_present()
        self._install("connect", self._connect_hook())
        _attached[id(pool)] = self

    def detach(self) -> None:
        """Put everything back as it was."""
        pool = self.pool
        _attached.pop(id(pool), None)
        for name, (hook, was_set, original) in self._installed.items():
            # Where somebody wrapped the hook in turn it stays as a part of his chain, and writes to nowhere.
            if pool.__dict__.get(name) is not hook:
                continue
            if was_set:
                setattr(pool, name, original)
            else:
                delattr(pool, name)
        for name, listener in self._listeners:
            unlisten(pool, name, listener)
        PingTap.detach(pool._dialect, self.recorder)

    def _install(self, name: str, hook: Any) -> None:
        pool = self.pool
        original = getattr(pool, name)
        self._installed[name] = (hook, name in pool.__dict__, original)
        setattr(pool, name, hook)

    def _listen(self, name: str, listener: Any) -> None:
        self._listeners.append((name, listener))
        listen(self.pool, name, listener)

    def _connect_hook(self) -> Callable[..., Any]:
        original = self.pool.connect
        if not inspect.signature(original).parameters:
            return functools.update_wrapper(connect_hook(self, self.recorder, original), original)

        # A subclass with arguments of its own.
        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            return connect_hook(self, self.recorder, functools.partial(original, *args, **kwargs))()

        return connect

    # -- a pool that is in use already

    def _adopt_present(self) -> None:
        for record in records_of(self.pool):
            # One that is neither is about to be handed out, or about to be collected.
            if record.in_use or record.dbapi_connection is not None or keeps(self.pool, record):
                self._adopt(record)

    def _adopt(self, record: Any) -> Place:
        now = self.recorder.clock()
        age = max(0.0, time.time() - record.starttime)
        # A wall clock that was set can make it older than the monotonic one, which starts with the host.
        connected_at = EMPTY if record.dbapi_connection is None else max(now - age, _EARLIEST)
        place = self.recorder.adopt(record, connected_at=connected_at, retired=self._retired)
        if is_out(record):
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
                        unlisten(self.pool, name, listener)
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
        dialect = self.pool._dialect
        self.recorder.returned(
            record,
            place,
            since,
            is_async=getattr(dialect, "is_async", False),
            terminates=getattr(dialect, "has_terminate", False),
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
            if place is not None and place.table[place.row] == EMPTY and not keeps(self.pool, record):
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
            return idle_records(self.pool)
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
                    unlisten(pool, name, listener)
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
