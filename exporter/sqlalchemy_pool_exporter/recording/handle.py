# SPDX-License-Identifier: Apache-2.0
"""The handle of an instrumented pool, which follows it through forks and replacements and undoes all."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Self

from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.stuck import STUCK_AFTER

from .hooks import Hooks
from .instrumented import INSTRUMENTED
from .sqlalchemy_pool import configuration, engine_with_pool

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter.segment.identity import Identity

    from .recorder import Recorder


class Handle:
    """An instrumented pool, and the pools that replace it when its engine is disposed of.

    A handle does not keep its pool alive. When the pool is garbage-collected, its series disappear.
    """

    __slots__ = ("__weakref__", "_engines", "_gives_way", "_hooks", "_identity", "_registry")

    def __init__(self, identity: Identity, registry: CollectorRegistry) -> None:
        self._identity = identity
        self._registry = registry
        # Whether instrument_all() found the pool, so that an instrument() of the application replaces this.
        self._gives_way = False
        self._engines: weakref.WeakSet[Engine] = (
            weakref.WeakSet()
        )  # those that are known to have a pool of this handle
        self._hooks: weakref.WeakSet[Hooks] = weakref.WeakSet()

    @property
    def name(self) -> str:
        """The value of the label ``pool``, as far as this process knows the pools.

        A default name has a suffix as long as pools that have it differ, so it can change when a pool comes or goes.
        """
        return INSTRUMENTED.collector_of(self._registry).own.label(self._identity)

    @property
    def closed(self) -> bool:
        """Whether the pool is no longer instrumented."""
        return not self._recorders

    @property
    def _recorders(self) -> list[Recorder]:
        return [hooks.recorder for hooks in list(self._hooks) if not hooks.recorder.is_ended]

    def healthy(self, *, stuck_after: float = STUCK_AFTER) -> bool:
        """Return whether the pool is not stuck in this process; it takes no connection and waits for nothing.

        A pool is stuck if a caller waits, all connections that it may have are checked out, and none came back for
        ``stuck_after`` seconds. A pool that is busy is healthy; so is one that is no longer instrumented.

        Args:
            stuck_after: seconds, more than 0.
        """
        return not any(
            still.seconds >= stuck_after for one in self._recorders if (still := one.stillness()) is not None
        )

    def close(self) -> None:
        """Restore the pool exactly: no wrapper, no listener, no series. Does nothing the second time.

        The series of another pool of the same name stay, with the counts of this one.
        """
        with INSTRUMENTED.lock:
            for hooks in list(self._hooks):
                if not hooks.recorder.is_ended:
                    self._end(hooks)

    def notice_fork(self) -> None:
        """Start new blocks if this is a forked child that has not noticed it."""
        fork.notice()

    def is_shared(self, pool: Pool, leaving: Engine) -> bool:
        """Return whether an engine other than ``leaving`` is known to have this pool."""
        return any(
            engine is not leaving and vars(engine).get("pool") is pool for engine in list(self._engines)
        )

    def follow(self, pool: Pool, recorder: Recorder) -> None:
        """Record the pool that replaces the one of ``recorder``; SQLAlchemy's ``recreate()`` made it."""
        with INSTRUMENTED.lock:
            if not recorder.is_ended:
                INSTRUMENTED.fold()
                new = recorder.successor(configuration(pool))
                self._record(pool, new, is_new=True, is_alone=recorder.is_replaced)

    def _known(self, engine: Engine | None) -> None:
        if engine is not None:
            self._engines.add(engine_with_pool(engine))

    def _record(
        self,
        pool: Pool,
        recorder: Recorder,
        *,
        is_new: bool = False,
        is_alone: bool = False,
    ) -> None:
        """Attach hooks to a pool, and show it."""
        hooks = Hooks(pool, recorder, self)
        collector = INSTRUMENTED.collector_of(self._registry)
        # Before the hooks are attached: if another thread forks in between, the child must find the recorder.
        INSTRUMENTED.recorders[recorder] = weakref.ref(collector)
        self._hooks.add(hooks)
        try:
            hooks.attach(is_new=is_new)
            INSTRUMENTED.attached(hooks)
            collector.add(recorder, is_alone=is_alone)
        except BaseException:
            self._end(hooks)
            raise

    def _end(self, hooks: Hooks) -> None:
        INSTRUMENTED.detached(hooks)
        hooks.detach()
        hooks.recorder.stop()
        INSTRUMENTED.end(hooks.recorder)
        INSTRUMENTED.collector_of(self._registry).own.remove(hooks.recorder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pool={self._identity.name!r}{' closed' if self.closed else ''}>"
