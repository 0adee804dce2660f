# SPDX-License-Identifier: Apache-2.0
"""The hooks in a pool: which methods are wrapped, which events are listened to, and how both are undone.

SQLAlchemy's pool events do not fire before the wait, on a timeout or on a recycle, and a ``checkout`` listener makes
every checkout take SQLAlchemy's slow path. So these methods of the pool are wrapped, on the instance:

================== ==================================================================================
``connect``        a checkout begins, succeeds, fails, times out or is cancelled
``_do_return_conn`` a record goes back to the pool: a return, an invalidation or a detach
``_invoke_creator`` a physical connection is opened
``_close_connection`` a physical connection is closed; the record's timestamps tell why
``dispose``        connections that close inside this call are counted as disposed of
``recreate``       the new pool gets the same hooks
``__reduce_ex__``  a copy of the pool gets no hooks: ``copy`` and ``pickle`` ask it what to copy
================== ==================================================================================

Three events are listened to as well, because no method shows what they do: ``invalidate``, ``soft_invalidate`` and
``close_detached``. For pre-pings, the ping method of the dialect is wrapped, and for statements that fail its
``is_disconnect()``.

A fault in recording is counted and never reaches the application. An exception of the application's call is raised
again unchanged.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy.engine import Engine

from sqlalchemy_pool_exporter.segment.own_errors import Suppressing

from .checkin_cy import return_hook
from .checkout_cy import connect_hook
from .connections import ConnectionHooks, current_caller
from .faults import never_raises
from .ping_cy import PingTap
from .slow_path import SlowPath
from .sqlalchemy_pool import (
    CLOSE_CONNECTION,
    INVOKE_CREATOR,
    RETURN_CONNECTION,
    dialect_of,
    engine_with_pool,
    fill_level,
    idle_records,
    listen,
    pings,
    shares_its_connection,
    unlisten,
)
from .statement_errors import StatementErrorTap

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import Pool

    from .recorder import Recorder


_STATE = 2  # where the tuple that __reduce_ex__() returns has the object's state


class Follower(Protocol):
    """Follows a hooked pool through forks and replacements."""

    @property
    def name(self) -> str:
        """The name of the pool."""

    def notice_fork(self) -> None:
        """Start new blocks if this is a forked child."""

    def is_shared(self, pool: Pool, leaving: Engine) -> bool:
        """Return whether an engine other than ``leaving`` is known to have this pool."""

    def follow(self, pool: Pool, recorder: Recorder) -> None:
        """Record the pool that replaces the one of this recorder."""


class _Installed(NamedTuple):
    """A hook in a pool, and what was there before: an attribute of the pool itself, or of its class."""

    name: str
    hook: Any
    was_set: bool
    original: Any


class Hooks:
    """The hooks of one pool object. The mutable state is in the recorder, the slow path and the connection hooks."""

    __slots__ = (
        "__weakref__",
        "_connections",
        "_installed",
        "_listeners",
        "_slow_path",
        "dialect",
        "follower",
        "pool",
        "recorder",
    )

    def __init__(self, pool: Pool, recorder: Recorder, follower: Follower) -> None:
        self.pool = pool
        self.recorder = recorder
        recorder.name = lambda: follower.name
        self.follower = follower
        self.dialect = dialect_of(pool)  # another engine that gets the pool puts its own dialect there
        self._slow_path = SlowPath(pool, recorder)
        self._connections = ConnectionHooks(pool, recorder, self._slow_path)
        self._installed: list[_Installed] = []  # one of the same name wraps the earlier one
        self._listeners: list[tuple[str, Any]] = []

    # -- attaching and restoring

    def attach(self, *, is_new: bool = False) -> None:
        """Install the hooks.

        Args:
            is_new: the pool was just made. Otherwise connections may be out, and callers may be waiting.
        """
        pool, recorder, slow_path, connections = self.pool, self.recorder, self._slow_path, self._connections
        self._install(CLOSE_CONNECTION, connections.close_hook)
        self._install(INVOKE_CREATOR, connections.creator_hook)
        self._install(RETURN_CONNECTION, functools.partial(return_hook, slow_path, recorder))
        self._install("dispose", self._dispose_hook)
        self._install("recreate", self._recreate_hook)
        self._install("__reduce_ex__", self._reduce_hook)
        self._listen("invalidate", connections.on_invalidate)
        self._listen("soft_invalidate", connections.on_soft_invalidate)
        self._listen("close_detached", connections.on_close_detached)
        if pings(pool):
            PingTap.attach(self.dialect, recorder)
        StatementErrorTap.attach(self.dialect, recorder)
        # Before the hook, so that each checkout through it is seen to be, until there are no others.
        recorder.has_latecomers = not is_new
        # The last hook: a checkout that is recorded needs all the others.
        self._install("connect", self._connect_hook)
        if not is_new:
            # After the hook, so that each checkout runs through it or is seen to be under way.
            if slow_path.is_in_use():
                slow_path.await_latecomers(self._listen)
            else:
                recorder.has_latecomers = False
            # After the listener, so that each checkout is heard or its record is found.
            slow_path.adopt_present()

    def detach(self) -> None:
        """Remove the hooks and listeners."""
        pool = self.pool
        for name, hook, was_set, original in reversed(self._installed):
            # The application wrapped our hook: it stays inside that wrapper and records nothing any more.
            if pool.__dict__.get(name) is not hook:
                continue
            if was_set:
                setattr(pool, name, original)
            else:
                delattr(pool, name)
        for name, listener in self._listeners:
            unlisten(pool, name, listener)
        PingTap.detach(self.dialect, self.recorder)
        StatementErrorTap.detach(self.dialect, self.recorder)

    def _install(self, name: str, make_hook: Callable[[Any], Any]) -> None:
        pool = self.pool
        original = getattr(pool, name)
        hook = make_hook(original)
        self._installed.append(_Installed(name, hook, name in pool.__dict__, original))
        setattr(pool, name, hook)

    def _listen(self, name: str, listener: Any) -> None:
        self._listeners.append((name, listener))
        listen(self.pool, name, listener)

    def _connect_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        # Not next(): a time limit that strikes while a generator that was not exhausted is closed is lost.
        creator_hook, *_ = [one.hook for one in self._installed if one.name == INVOKE_CREATOR]
        if shares_its_connection(self.pool):
            original = self._shared_hook(original)

        origins = self.recorder.origins
        level = None if origins is None else fill_level(self.pool, origins.share)

        def hook(original: Callable[[], Any]) -> Callable[[], Any]:
            return connect_hook(self._slow_path, self.recorder, original, creator_hook.__code__, level)

        if not inspect.signature(original).parameters:
            return functools.update_wrapper(hook(original), original)

        # A subclass of the pool whose connect() takes arguments.
        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            return hook(functools.partial(original, *args, **kwargs))()

        return connect

    def _shared_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            connection = original(*args, **kwargs)
            self._slow_path.shared(connection)
            return connection

        return connect

    # -- copies

    def _reduce_hook(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(original)
        def reduce_ex(protocol: Any) -> Any:
            reduced = original(protocol)
            # A tuple of a callable, its arguments, the state and more; or the name of a global.
            if not isinstance(reduced, tuple) or len(reduced) < _STATE + 1:
                return reduced
            return (*reduced[:_STATE], self._without_hooks(reduced[_STATE]), *reduced[_STATE + 1 :])

        return reduce_ex

    def _without_hooks(self, state: Any) -> Any:
        """Return the state of a pool (its attributes, or a tuple of those and of slots) as it is without hooks."""
        if isinstance(state, tuple):
            return tuple(map(self._without_hooks, state))
        if not isinstance(state, dict):
            return state
        bare = state.copy()
        for name, hook, was_set, original in reversed(self._installed):
            if bare.get(name) is not hook:
                continue
            if was_set:
                bare[name] = original
            else:
                del bare[name]
        return bare

    # -- replacement

    def _dispose_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        disposing = self._connections.disposing

        @functools.wraps(original)
        def dispose(*args: Any, **kwargs: Any) -> Any:
            self.follower.notice_fork()
            caller, idle = current_caller(), self._idle_records() or []
            disposing.append(caller)
            try:
                result = original(*args, **kwargs)
                # Not if dispose() raised: SQLAlchemy then goes on with the connections that are left.
                self._disposed()
            finally:
                disposing.remove(caller)
                # SQLAlchemy closes no record without a connection, so no hook sees it go. Waiting for its collection is
                # not enough: in SQLAlchemy 2.0 the proxy of a detached connection keeps the record alive.
                for record in idle:
                    self._slow_path.release_if_discarded(record)
            return result

        return dispose

    @never_raises
    def _idle_records(self) -> list[Any]:
        return idle_records(self.pool)

    def _recreate_hook(self, original: Callable[..., Pool]) -> Callable[..., Pool]:
        @functools.wraps(original)
        def recreate(*args: Any, **kwargs: Any) -> Pool:
            self.follower.notice_fork()
            pool = original(*args, **kwargs)
            self._follow(pool, _engine_that_calls())
            return pool

        return recreate

    @never_raises
    def _follow(self, pool: Pool, leaving: Engine | None) -> None:
        for name, listener in self._listeners:
            unlisten(pool, name, listener)
        # If it is not known who has this pool, it counts as replaced until it is used again.
        if not self.recorder.is_replaced and (
            leaving is None or not self.follower.is_shared(self.pool, leaving)
        ):
            self.recorder.replaced()
            self._install("connect", self._replaced_hook)
        self.follower.follow(pool, self.recorder)

    def _replaced_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            self._used_again(_engine_that_calls())
            return original(*args, **kwargs)

        return connect

    @never_raises
    def _used_again(self, engine: Engine | None) -> None:
        """Note that a pool that was replaced lives on: another engine has it, or the application itself."""
        # Not if this engine has left the pool: it had looked it up just before another thread disposed of it.
        if engine is not None and engine.pool is not self.pool:
            return
        self.recorder.replaced(is_replaced=False)
        # The hook over the one for checkouts.
        for installed in [one for one in self._installed if one.name == "connect"][1:]:
            if self.pool.__dict__.get("connect") is installed.hook:
                setattr(self.pool, installed.name, installed.original)
                with Suppressing(ValueError):  # another thread used the pool again, too
                    self._installed.remove(installed)

    @never_raises
    def _disposed(self) -> None:
        self.recorder.disposed()


def _engine_that_calls() -> Engine | None:
    """Return the engine that has the pool, if its method or that of a copy called the hook that calls this; or None."""
    hook = inspect.currentframe()
    for _ in range(2):
        hook = hook and hook.f_back
    caller = hook and hook.f_locals.get("self")
    return engine_with_pool(caller) if isinstance(caller, Engine) else None
