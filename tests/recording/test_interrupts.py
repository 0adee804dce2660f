# SPDX-License-Identifier: Apache-2.0
"""The metrics stay correct when an interrupt comes at any moment of a recording."""

from __future__ import annotations

import signal
import warnings
from typing import TYPE_CHECKING

import pytest

from tests.support.moments import ACTS, Scene, checks_out_again, each_moment, interrupt
from tests.support.programs import PROLOGUE, run

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("act", ACTS)
def test_interrupted_at_any_moment(act: str) -> None:
    """After Ctrl-C anywhere in a recording nothing is pending or in use, and neither pool nor table has lost a slot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scene, where, _ in each_moment(act, interrupt):
            scene.assert_true(where)


class SoftTimeLimitError(Exception):
    """The exception that a task queue's signal handler raises to end a slow task."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.parametrize("act", ["checkout", "overflow", "invalidate", "dispose"])
def test_what_a_signal_handler_raises_reaches_the_application(act: str) -> None:
    """An exception of the application's signal handler passes through the recording to the application."""

    def handler(*_: object) -> None:
        raise SoftTimeLimitError

    before = signal.signal(signal.SIGUSR1, handler)
    swallowed = []
    try:
        for scene, where, raised in each_moment(act, lambda _: signal.raise_signal(signal.SIGUSR1)):
            if not isinstance(raised, SoftTimeLimitError):
                swallowed.append(where)
            if act != "dispose":  # SQLAlchemy leaves an interrupted dispose() unfinished
                scene.assert_true(where)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert swallowed == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("intrude", [interrupt, checks_out_again])
def test_a_pre_ping_disturbed_at_any_moment(intrude: Callable[[Scene], None]) -> None:
    """After an interrupt or a finalizer anywhere in a checkout with pre-ping, the metrics are correct."""
    for scene, where, raised in each_moment("checkout", intrude, pool_pre_ping=True, max_overflow=9):
        assert (intrude is interrupt) == (raised is not None), where
        scene.assert_true(where)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_interrupted_by_real_signals() -> None:
    """Hundreds of timer signals that raise KeyboardInterrupt during checkouts leave nothing pending or in use."""
    result = run(
        """
        from sqlalchemy_pool_exporter.recording.sqlalchemy_pool import records_of

        pool = QueuePool(Connection, pool_size=1, max_overflow=-1)
        instrument(pool, name="p", registry=registry)
        armed = False
        swallowed = []

        # One in each turn: a record that is collected has two callbacks, and on a busy machine two signals came within
        # them. Of 17 runs on CPython 3.15, whose collector runs at any moment, 2 lost a row so.
        def handler(*_):
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt

        sys.unraisablehook = lambda raised: swallowed.append(raised.err_msg)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.00031)
        interrupts = turns = 0
        while interrupts < 400:
            turns += 1
            try:
                armed = True
                pool.connect().close()
                armed = False
            except KeyboardInterrupt:
                armed = False
                interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        idle = samples()
        assert idle["pending_checkouts"] == 0, idle
        # If one strikes where SQLAlchemy's callback of a collected proxy begins, SQLAlchemy keeps the record in its
        # table and never hands it out again.
        out = len([record for record in records_of(pool) if record.in_use and record.fairy_ref() is None])
        assert out <= len(swallowed), (out, swallowed)
        assert idle["connections.in_use"] == out, (out, idle)
        held = [pool.connect() for _ in range(5)]
        busy = samples()
        assert busy["connections.in_use"] == out + 5, (out, busy)
        assert turns - interrupts <= busy["checkouts_total"] <= turns + 5, (turns, interrupts, busy)
        assert busy["exporter_recording_faults_total"] == 0, busy
        print("done")
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "done\n", result.stderr
