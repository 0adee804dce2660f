# SPDX-License-Identifier: Apache-2.0
"""A thread that the package starts in the midst of the application's work."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment import fork
from tests.support import wait

if TYPE_CHECKING:
    import pytest

# Sets time limits for a thread that starts others. A limit ends that thread, wherever it strikes, and may leave a lock
# of ``threading`` locked for ever: another thread goes on, and this program takes no such lock. If no thread goes on,
# the stacks are shown.
LIMITS = """
import _thread, ctypes, faulthandler, os, sys, threading, time
from sqlalchemy_pool_exporter.segment import fork
faulthandler.dump_traceback_later(100, exit=True)
sys.unraisablehook = threading.excepthook = lambda _: None  # a limit ends a thread
class Limit(Exception): ...
starts, limits, begun = [], [], []
def strike(ident):
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Limit))
def enough():
    return len(starts) >= 3000 and len(limits) >= 100
def work():
    begun.append(None)
    while not enough():
        while _thread._count() > 50:
            time.sleep(0.0005)
        starts.append(None)
        fork.start_thread(int, name="started")
while not enough():
    begun.clear()
    worker = _thread.start_new_thread(work, ())
    while not begun:
        time.sleep(0.0005)
    while not enough() and strike(worker):  # else it has ended
        limits.append(None)
        time.sleep(0.0005)
os._exit(0)  # waits for no lock
"""


def test_started_thread_has_its_name_and_does_not_keep_the_process() -> None:
    """The thread has the name, and is a daemon."""
    found: list[tuple[str, bool]] = []

    def act(number: int) -> None:
        this = threading.current_thread()
        found.append((f"{this.name} {number}", this.daemon))

    assert fork.start_thread(act, 7, name="sqlalchemy-pool-exporter test")

    assert wait.eventually(lambda: found == [("sqlalchemy-pool-exporter test 7", True)])


def test_no_thread_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system has no thread left, the caller goes on and is told so."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    monkeypatch.setattr("_thread.start_new_thread", refuse)

    assert not fork.start_thread(int, name="test")


def test_time_limits_do_not_let_a_caller_wait_for_ever() -> None:
    """A thread that is given time limits while it starts others ends; on CPython 3.11 it once waited for ever."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITS], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
