# SPDX-License-Identifier: Apache-2.0
"""What is instrumented in this process, and what a forked child makes of it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment import store

from .collector import PoolCollector

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from sqlalchemy.pool import Pool

    from .hooks import Hooks
    from .recorder import Recorder


class Instrumented:
    """All that is instrumented in this process; every change is made under ``lock``.

    The mutable state is three tables, none of which keeps alive what is in it. A table of hooks by pool is here and not
    on the pool, where an application that compares the attributes of pools would find it.
    """

    __slots__ = ("_collectors", "_hooks", "_process", "lock", "recorders")

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finalizer that closes a handle can run under it
        self.recorders: weakref.WeakValueDictionary[str, Recorder] = weakref.WeakValueDictionary()
        # By the address of the pool. The hooks in the pool keep them alive.
        self._hooks: weakref.WeakValueDictionary[int, Hooks] = weakref.WeakValueDictionary()
        self._collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = (
            weakref.WeakKeyDictionary()
        )
        self._process: int | None = (
            None  # whose recorders these are; None until the first pool is instrumented
        )

    def hooks_of(self, pool: Pool) -> Hooks | None:
        """Return what is attached to a pool, or None."""
        hooks = self._hooks.get(id(pool))
        return hooks if hooks is not None and hooks.pool is pool else None

    def attached(self, hooks: Hooks) -> None:
        """Remember what is attached to a pool."""
        self._hooks[id(hooks.pool)] = hooks

    def detached(self, hooks: Hooks) -> None:
        """Forget what was attached to a pool."""
        self._hooks.pop(id(hooks.pool), None)

    def collector_of(self, registry: CollectorRegistry) -> PoolCollector:
        """Return the one collector of a registry."""
        with self.lock:
            collector = self._collectors.get(registry)
            if collector is None:
                collector = self._collectors[registry] = PoolCollector(registry)
            return collector

    def watch_forks(self) -> None:
        """Call ``notice_fork()`` in every child that is forked from now on."""
        if self._process is None:
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self.notice_fork)
            # After the registration: if another thread forks in between, the child has the fork hook. Not at import: a
            # process that instruments only in a forked child would later take its own dispose() for a fork.
            self._process = os.getpid()

    def notice_fork(self) -> None:
        """In a forked child: take a block of one's own for each pool, and leave the parent's alone.

        Does nothing the second time, and nothing in the parent: a fork hook of the application can dispose of an engine
        before ours is called.
        """
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self.lock = threading.RLock()  # another thread of the parent may have held it
        store.after_fork()
        for recorder in list(self.recorders.values()):
            recorder.restart()


INSTRUMENTED = Instrumented()
