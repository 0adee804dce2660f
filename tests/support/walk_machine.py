# SPDX-License-Identifier: Apache-2.0
"""A random walk over processes: engines of a few names in workers that fork, die, and lose their segments.

The model of a worker is the number of its open connections by engine; the model of a name is a tally of its counters.
After each step both are compared with what a reader of the directory shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter.environment import DIRECTORY
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.paths import ROOT
from tests.support.samples import RegistrySamples
from tests.support.wait import eventually
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("orders", "users")
# Counters that this walk does not tally: how long something took, and what the machine cannot know.
_UNTALLIED = ("_seconds_count", "exporter_")


@dataclass(eq=False)
class Pool:
    """An engine of a worker, and how many connections it has."""

    key: int
    name: str
    size: int
    overflow: int
    idle: int = 0
    held: int = 0
    is_pinned: bool = False  # connections that this process inherited keep the engine alive

    @property
    def capacity(self) -> int:
        return self.size + self.overflow


@dataclass(eq=False)
class Process:
    """A live worker process."""

    pid: int
    stream: Any
    pools: dict[int, Pool] = field(default_factory=dict)
    has_segment: bool = False  # from its first engine on
    has_forked: bool = False  # since it has a segment
    has_connected: bool = False  # since it began
    unnoticed: Process | None = None  # its parent, if it was forked in C and has used no pool since

    @property
    def is_worker(self) -> bool:
        """Whether it is more than a parent that only forked, and more than a child that has not noticed that it is."""
        return not self.unnoticed and (self.has_connected or not self.has_forked)

    def ask(self, command: str, *arguments: object) -> Any:
        if self.unnoticed:
            self.unnoticed.has_forked, self.unnoticed = True, None
        self.stream.write(json.dumps([command, *arguments]) + "\n")
        self.stream.flush()
        return json.loads(self.stream.readline())


class Walk(RuleBasedStateMachine):
    """Worker processes that share a directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._keys = count()
        self.segments = directory / f"walk-{next(_walks)}"
        self.segments.mkdir()
        address = self.segments.with_suffix(".sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        self._listener.settimeout(60)
        self._address = str(address)
        self._children: list[subprocess.Popen[bytes]] = []
        self.processes: list[Process] = []
        self.tally: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
        self.registry = CollectorRegistry()
        self.registry.register(
            FleetCollector(Reader(self.segments), worker_label=False, counters_per_worker=False)
        )

    # -- processes

    @initialize()
    def start_first(self) -> None:
        self.start()

    @precondition(lambda self: len(self.processes) < 3)
    @rule()
    def start(self) -> None:
        environment = {**os.environ, DIRECTORY: str(self.segments), "PYTHONPATH": os.pathsep.join(sys.path)}
        self._children.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.walk_worker", self._address], cwd=ROOT, env=environment
            )
        )
        self._accept()

    def _accept(self) -> Process:
        connection, _ = self._listener.accept()
        connection.settimeout(60)
        stream = connection.makefile("rw")
        connection.close()
        process = Process(json.loads(stream.readline()), stream)
        self.processes.append(process)
        return process

    def _process(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    @precondition(lambda self: 0 < len(self.processes) < 4)
    @rule(number=st.integers(0, 9), in_c=st.booleans())
    def fork(self, number: int, in_c: bool) -> None:
        parent = self._process(number)
        self._notice(parent)
        parent.ask("fork", in_c)
        child = self._accept()
        child.pools = {
            key: Pool(key, p.name, p.size, p.overflow, is_pinned=p.is_pinned or p.idle + p.held > 0)
            for key, p in parent.pools.items()
        }
        child.has_segment = parent.has_segment
        # A child that inherits connections disposes of their pools, and so it notices.
        if in_c and parent.has_segment and not any(p.idle + p.held for p in parent.pools.values()):
            child.unnoticed = parent
        else:
            parent.has_forked = parent.has_segment

    @staticmethod
    def _notice(process: Process) -> None:
        if process.unnoticed:
            process.ask("notice")

    @precondition(lambda self: len(self.processes) > 1)
    @rule(number=st.integers(0, 9))
    def kill(self, number: int) -> None:
        process = self.processes.pop(number % len(self.processes))
        # A child that has not noticed keeps the lock of its parent's segment, so its parent would seem to live.
        for child in self.processes:
            if child.unnoticed is process:
                self._notice(child)
        os.kill(process.pid, signal.SIGKILL)
        process.stream.close()

    @precondition(lambda self: self.processes)
    @rule()
    def delete_segments(self) -> None:
        """Delete all files, and let each process open a connection, which replaces its own."""
        for path in self.segments.glob("worker-*"):
            path.unlink()
        for process in self.processes:
            pool = next((pool for pool in process.pools.values() if not pool.held), None)
            if pool is None:
                pool = self._make(process, NAMES[0], 1, 0)
            self._dispose(process, pool)
            self._check_out(process, pool)
            self._give_back(process, pool)

    # -- engines

    @precondition(lambda self: self.processes)
    @rule(
        number=st.integers(0, 9),
        name=st.sampled_from(NAMES),
        size=st.integers(1, 2),
        overflow=st.integers(0, 1),
    )
    def make(self, number: int, name: str, size: int, overflow: int) -> None:
        process = self._process(number)
        if len(process.pools) < 4:
            self._make(process, name, size, overflow)

    def _make(self, process: Process, name: str, size: int, overflow: int) -> Pool:
        pool = Pool(next(self._keys), name, size, overflow)
        process.pools[pool.key] = pool
        process.has_segment = True
        process.ask("make", pool.key, name, size, overflow)
        return pool

    def _pool(self, number: int, *, held: bool | None = None) -> tuple[Process, Pool] | None:
        found = [
            (process, pool)
            for process in self.processes
            for pool in process.pools.values()
            if held is None or held == bool(pool.held)
        ]
        return found[number % len(found)] if found else None

    @rule(number=st.integers(0, 99))
    def check_out(self, number: int) -> None:
        if found := self._pool(number):
            self._check_out(*found)

    def _check_out(self, process: Process, pool: Pool) -> None:
        tally = self.tally[pool.name]
        succeeds = pool.idle > 0 or pool.held < pool.capacity
        assert process.ask("check_out", pool.key) == succeeds
        process.has_connected = True
        if not succeeds:
            tally["checkout_timeouts"] += 1
            return
        tally["checkouts"] += 1
        if pool.idle:
            pool.idle -= 1
        else:
            tally["connects"] += 1
            tally["overflow_opened"] += pool.held >= pool.size
        pool.held += 1

    @rule(number=st.integers(0, 99), leak=st.booleans())
    def give_back(self, number: int, leak: bool) -> None:
        if found := self._pool(number, held=True):
            self._give_back(*found, leak=leak)

    def _give_back(self, process: Process, pool: Pool, *, leak: bool = False) -> None:
        tally = self.tally[pool.name]
        process.ask("leak" if leak else "give_back", pool.key)
        tally["checkins"] += 1
        tally["leaked_checkouts"] += leak
        pool.held -= 1
        if pool.idle < pool.size:
            pool.idle += 1
        else:
            tally["closes.overflow"] += 1

    @rule(number=st.integers(0, 99))
    def invalidate(self, number: int) -> None:
        """Invalidate the only connection of an engine, and dispose of the record that is left without one."""
        found = self._pool(number, held=True)
        if found and found[1].held + found[1].idle == 1:
            process, pool = found
            process.ask("invalidate", pool.key)
            self.tally[pool.name].update(["checkins", "closes.error", "invalidations.hard"])
            pool.held = 0
            self._dispose(process, pool)

    @rule(number=st.integers(0, 99))
    def dispose(self, number: int) -> None:
        if found := self._pool(number, held=False):
            self._dispose(*found)

    def _dispose(self, process: Process, pool: Pool) -> None:
        process.ask("dispose", pool.key)
        self.tally[pool.name]["closes.dispose"] += pool.idle
        pool.idle = 0

    @rule(number=st.integers(0, 99))
    def drop(self, number: int) -> None:
        """Forget an engine without dispose(): the garbage collector closes its connections."""
        found = self._pool(number, held=False)
        if found and not found[1].is_pinned:
            process, pool = found
            process.ask("drop", pool.key)
            self.tally[pool.name]["closes.gc"] += pool.idle
            self.tally[pool.name]["undisposed.collected"] += pool.idle > 0
            del process.pools[pool.key]

    @rule(number=st.integers(0, 99))
    def interrupt(self, number: int) -> None:
        """Raise time limits in the middle of checkouts; what each one interrupted is not known, so adopt the counts."""
        if not (found := self._pool(number, held=False)):
            return
        process, pool = found
        before, idle = self.tally[pool.name].copy(), pool.idle
        began, ended = process.ask("interrupt", pool.key)
        process.has_connected = True
        self._dispose(process, pool)
        shown = self._shown(RegistrySamples(self.registry), pool.name)
        grown = Counter(shown)
        grown.subtract(before)
        assert ended <= grown["checkouts"] <= began
        # Where a time limit interrupts SQLAlchemy's own return, the connection is closed and never returned.
        assert grown["checkins"] <= grown["checkouts"]
        closed = sum(value for key, value in grown.items() if key.startswith("closes."))
        assert grown["connects"] + idle == closed
        self.tally[pool.name] = shown

    # -- after each step

    @invariant()
    def numbers_are_true(self) -> None:
        # A killed process lets go of its lock a moment after its death.
        assert eventually(lambda: not self._wrong()), self._wrong()

    def _wrong(self) -> dict[str, object]:
        """Return what is shown and what is true, for all that differs."""
        samples = RegistrySamples(self.registry)
        wrong: dict[str, object] = {}
        for name in NAMES:
            shown, true = self._shown(samples, name), +self.tally[name]
            wrong |= {f"{name} {k}": (shown[k], true[k]) for k in {*shown, *true} if shown[k] != true[k]}
            try:
                assert_sites_add_up(samples, name)
            except AssertionError as error:
                wrong[f"{name} sites"] = str(error)
            for key, value in self._state(name).items():
                has = samples.get(key[0], name, **dict(key[1:]))
                if (has or 0.0) != value:
                    wrong[f"{name} {key}"] = (has, value)
        return wrong

    @staticmethod
    def _shown(samples: RegistrySamples, name: str) -> Counter[str]:
        counted = samples.counters(name)
        return Counter({k: int(v) for k, v in counted.items() if not any(part in k for part in _UNTALLIED)})

    def _state(self, name: str) -> dict[tuple[Any, ...], float]:
        pools = [
            pool
            for process in self.processes
            if process.is_worker
            for pool in process.pools.values()
            if pool.name == name
        ]
        return {
            ("capacity",): sum(pool.capacity for pool in pools),
            ("instances",): len(pools),
            ("connections", ("state", "in_use")): sum(pool.held for pool in pools),
            ("connections", ("state", "idle")): sum(pool.idle for pool in pools),
            ("overflow_connections",): sum(max(0, pool.held + pool.idle - pool.size) for pool in pools),
            ("pending_checkouts",): 0,
            ("untracked_connections",): 0,
        }

    def teardown(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.stream.close()
        for child in self._children:
            child.wait()
        self._listener.close()


_walks = count()
