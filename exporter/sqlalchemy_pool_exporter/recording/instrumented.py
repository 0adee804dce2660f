# SPDX-License-Identifier: Apache-2.0
"""The registry of what is instrumented in this process, and the fork hook that resets it in a child."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment import fork, store

from .at_fork import count_children
from .collector import PoolCollector
from .undisposed import WATCH as ENDINGS

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter.segment.directory import Fleet

    from .hooks import Hooks
    from .recorder import Recorder


class Instrumented:
    """All that is instrumented in this process; every change is made under ``lock``.

    The mutable state is the recorders, with the collector that shows each; the recorders whose pool is gone and whose
    counts are still to be folded; and two tables of weak references. A recorder is kept alive until then, because it
    outlives its pool: when a pool is garbage-collected, so are its connections, and their closes count. The hooks of a
    pool are looked up here and not in an attribute of the pool, because an application that compares the attributes of
    pools would see that attribute.
    """

    __slots__ = ("_collectors", "_ended", "_hooks", "_is_folding", "_lock", "_watches", "recorders")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finalizer that closes a handle can run while it is held
        self.recorders: dict[Recorder, weakref.ref[PoolCollector]] = {}
        # A finalizer may not wait for the lock, so it only appends.
        self._ended: deque[Recorder] = deque()
        self._is_folding = False
        # By id() of the pool. The pool keeps its hooks alive: its wrapped methods refer to them.
        self._hooks: weakref.WeakValueDictionary[int, Hooks] = weakref.WeakValueDictionary()
        self._collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = (
            weakref.WeakKeyDictionary()
        )
        self._watches = False  # whether forks are watched: from the first pool that is instrumented

    @property
    def lock(self) -> threading.RLock:
        """The lock of this process; a forked child does not wait for its parent's."""
        fork.notice()
        return self._lock

    def hooks_of(self, pool: Pool) -> Hooks | None:
        """Return the hooks of a pool, or None."""
        hooks = self._hooks.get(id(pool))
        return hooks if hooks is not None and hooks.pool is pool else None

    def attached(self, hooks: Hooks) -> None:
        """Remember the hooks of a pool, and end the recording when it is garbage-collected."""
        pool, recorder = hooks.pool, hooks.recorder
        self._hooks[id(pool)] = hooks
        # Not weakref.finalize(): it adds to Python's table of finalizers, through which instrument() looks.
        recorder.pool_attached(weakref.ref(pool, lambda _: self._pool_collected(recorder)))

    def detached(self, hooks: Hooks) -> None:
        """Forget the hooks of a pool."""
        self._hooks.pop(id(hooks.pool), None)

    def _pool_collected(self, recorder: Recorder) -> None:
        try:
            if not fork.mark[0] and not fork.notice():
                return  # a forked child that is leaving the blocks of its parent
            if recorder.pool_collected():
                self._ended.append(recorder)
                if recorder.ending is not None:
                    ENDINGS.collected(recorder.ending)
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)

    def collector_of(self, registry: CollectorRegistry) -> PoolCollector:
        """Return the one collector of a registry."""
        with self.lock:
            collector = self._collectors.get(registry)
            if collector is None:
                collector = PoolCollector(registry, self.fold, self._names_elsewhere)
                self._collectors[registry] = collector
            return collector

    def _names_elsewhere(self, collector: PoolCollector) -> set[str]:
        """Return the names of the pools that this process shows in other registries, and not in this one."""
        with self.lock:
            others = [other for other in self._collectors.values() if other is not collector]
        return set().union(*(other.names for other in others)) - collector.names

    def end(self, recorder: Recorder) -> None:
        """Fold the counts of a recorder that was stopped."""
        self._ended.append(recorder)
        self.fold()

    def fold(self) -> None:
        """Fold the counts of pools that are gone, unless another thread is at it."""
        lock = self.lock
        # The lock is taken within the block, and no call comes before its release: a time limit that strikes after a
        # call would leave it locked, and each scrape of another thread would wait for ever.
        try:
            if not lock.acquire(blocking=False):
                return
            if not self._is_folding:  # a finalizer that closes a handle can run while another one is folded
                self._is_folding = True
                try:
                    self._fold_all()
                finally:
                    self._is_folding = False
        finally:
            try:  # noqa: SIM105 - suppress() is a call
                lock.release()
            except RuntimeError:  # another thread has it
                pass

    def _fold_all(self) -> None:
        while self._ended:
            recorder = self._ended.popleft()
            collector = self.recorders.get(recorder, _nothing)()
            with recorder.storage.pages.changing():
                if not recorder.storage.pages.fold(recorder.storage, is_brief=recorder.is_brief):
                    self._ended.append(recorder)
                    return
                self.recorders.pop(recorder, None)
                if collector is not None:
                    collector.own.folded(recorder)

    def watch_forks(self) -> None:
        """Call ``_leave_parent()`` in every child that is forked from now on."""
        if not self._watches:
            self._watches = True
            count_children()
            fork.call_in_child(self._leave_parent)
            ENDINGS.watch(lambda: list(self.recorders))

    def _leave_parent(self) -> None:
        """In a forked child: give each pool a new block, and write to the parent's blocks no more."""
        self._lock = threading.RLock()  # a thread of the parent may have held the old one
        self._forget_ended()
        recorders = list(self.recorders)
        # First, and without any input or output, in which a signal handler could use a pool.
        for recorder in recorders:
            recorder.leave()
        store.after_fork()
        for collector in list(self._collectors.values()):
            collector.own.memory.after_fork()
        for recorder in recorders:
            recorder.restart()

    def _forget_ended(self) -> None:
        """Forget pools that are gone: the parent counts them."""
        self._is_folding = False
        self._ended.clear()
        for recorder, collector in list(self.recorders.items()):
            if recorder.is_ended:
                del self.recorders[recorder]
                if (shown_by := collector()) is not None:
                    shown_by.own.folded(recorder)


def _nothing() -> None:
    return None


INSTRUMENTED = Instrumented()


def fleet_of(registry: CollectorRegistry) -> Fleet | str:
    """Read the pools that a registry shows, for the board; return why there are none if there are none."""
    if not hasattr(registry, "register"):
        return "a restricted registry has no board; serve the registry itself"
    return INSTRUMENTED.collector_of(registry).fleet()


def ready_fleet_of(registry: CollectorRegistry) -> Fleet | str:
    """Read the pools of a registry whose readiness counts; return a text if there are none."""
    if not hasattr(registry, "register"):
        return "a restricted registry has no pools of its own"
    return INSTRUMENTED.collector_of(registry).ready_fleet() or "there are no pools"


def show_directory(registry: CollectorRegistry, directory: str | os.PathLike[str] | None) -> Path | None:
    """Show all pools of a directory in a registry; return the directory of the argument or the environment, or None."""
    chosen = store.chosen_directory(directory)
    if chosen is not None and hasattr(registry, "register"):  # a restricted registry has no register()
        INSTRUMENTED.collector_of(registry).add_directory(chosen)
    return chosen
