# SPDX-License-Identifier: Apache-2.0
"""A fault in the recording is counted, and the application does not notice it."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording import checkout_cy
from sqlalchemy_pool_exporter.recording import instrument as instrumentation
from sqlalchemy_pool_exporter.recording.connection_table import ConnectionTable
from sqlalchemy_pool_exporter.recording.recorder import Recorder
from sqlalchemy_pool_exporter.segment.block import FAULTS
from tests.support.pool_incidents import INCIDENTS, listeners_raise, transcript
from tests.support.samples import RegistrySamples
from tests.support.sources import is_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine


pytestmark = pytest.mark.usefixtures("little_to_collect")


class Sabotage:
    """Makes a part of the recorder raise ``times`` times, after ``after`` uses that work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[Exception] = RuntimeError) -> None:
        self.monkeypatch = monkeypatch
        self.error = error
        self.after = self.times = self.struck = 0

    def strike(self) -> None:
        self.after -= 1
        if self.after < 0 < self.times:
            self.times -= 1
            self.struck += 1
            raise self.error("sabotage")

    def clock(self) -> float:
        self.strike()
        return time.monotonic()

    def break_clock(self) -> None:
        self._build(lambda recorder: setattr(recorder, "clock", self.clock))

    def break_block(self, how: str) -> None:
        self._build(lambda recorder: setattr(recorder, "block", _Block(recorder.block, self, how)))

    def break_waiters(self) -> None:
        self._build(lambda recorder: setattr(recorder.waiters, "free", _Waiters(self)))

    def break_method(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            return original(*args, **kwargs)

        if owner is Recorder:
            self._build(lambda _: None, {name: method})
        else:
            broken = type("Broken", (owner,), {name: method})
            self.monkeypatch.setattr(f"sqlalchemy_pool_exporter.recording.recorder.{owner.__name__}", broken)

    def _build(self, prepare: Callable[[Any], None], methods: dict[str, Any] | None = None) -> None:
        def build(*args: Any, **kwargs: Any) -> Recorder:
            recorder: Recorder = broken(*args, **kwargs)
            prepare(recorder)
            return recorder

        broken = type("Broken", (Recorder,), methods or {})
        self.monkeypatch.setattr(instrumentation, "Recorder", build)

    def everything(self, *, after: int, times: int) -> int:
        """Run all incidents on the broken recorder, compare each with the bare run, and return the counted faults."""
        faults = 0.0
        self.struck = 0
        for incident in INCIDENTS:
            if times == 1 and incident is listeners_raise:
                continue  # it starts like the others and takes as long as all of them together
            registry = CollectorRegistry()
            engines = []

            def sabotaged(engine: Engine, registry: CollectorRegistry = registry) -> None:
                self.times = 0
                engines.append((engine, instrument(engine, registry=registry).name))  # noqa: B023 - called at once
                self.after, self.times = after, times

            lines = transcript(incident, instrumented=sabotaged)
            self.times = 0
            assert BARE[incident] == lines, incident.__name__
            faults += RegistrySamples(registry).value("exporter_recording_faults_total", engines.pop()[1])
        return int(faults)


class _Bare(dict[Any, list[str]]):
    def __missing__(self, incident: Any) -> list[str]:
        # Not instrumented: what the application then notices is what it must always notice. Computed once per incident.
        self[incident] = transcript(incident, instrumented=lambda _: None)
        return self[incident]


BARE = _Bare()


class _Block:
    """A block that raises at reads or writes, except of the fault counter."""

    def __init__(self, block: memoryview, sabotage: Sabotage, how: str) -> None:
        self._block, self._sabotage, self._how = block, sabotage, how

    def __getitem__(self, index: Any) -> Any:
        if self._how == "read" and index != FAULTS:
            self._sabotage.strike()
        return self._block[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if self._how == "write" and index != FAULTS:
            self._sabotage.strike()
        self._block[index] = value

    def __len__(self) -> int:
        return len(self._block)


class _Waiters(list[int]):
    def __init__(self, sabotage: Sabotage) -> None:
        super().__init__()
        self._sabotage = sabotage

    def __getitem__(self, index: Any) -> Any:
        self._sabotage.strike()
        return super().__getitem__(index)

    def __delitem__(self, index: Any) -> None:
        self._sabotage.strike()
        super().__delitem__(index)

    def append(self, waiter: int) -> None:
        self._sabotage.strike()
        super().append(waiter)


ALWAYS = 10**9
# Left out: methods that promise never to raise.
NEVER_RAISE = {"fault", "acquire_waiter", "_record_collected", "read", "stop", "restart", "clear", "rows"}
METHODS = [
    (owner, name)
    for owner in (ConnectionTable, Recorder)
    for name, member in sorted(vars(owner).items())
    if inspect.isfunction(member) and not name.startswith("__") and name not in NEVER_RAISE
]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_clock_that_fails(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """A clock that raises changes nothing for the application; each of its faults is counted."""
    sabotage = Sabotage(monkeypatch, error)
    sabotage.break_clock()
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(8):
        assert sabotage.everything(after=moment, times=1) >= sabotage.struck > 0


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_block_that_fails(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A block that cannot be read or written changes nothing for the application."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_block(how)
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(12):
        sabotage.everything(after=moment, times=1)


@pytest.mark.skipif(is_compiled(checkout_cy), reason="compiled code takes nothing but a list")
def test_waiters_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken list of free waiter slots changes nothing for the application."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_waiters()
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(6):
        sabotage.everything(after=moment, times=1)


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_a_method_that_fails(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """If any method of the recorder fails, the application does not notice, and the fault is counted."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_method(owner, name)
    faults = sabotage.everything(after=0, times=ALWAYS)
    assert faults >= 1 or not sabotage.struck
