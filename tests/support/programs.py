# SPDX-License-Identifier: Apache-2.0
"""Programs in a separate Python process, for effects that a test must not have on its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

PROLOGUE = """
import gc, os, signal, sys, threading, time
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import FakeConnection as Connection

registry = CollectorRegistry()

def samples():
    return {
        sample.name.removeprefix("sqlalchemy_pool_")
        + "".join("." + value for label, value in sample.labels.items() if label != "pool"): sample.value
        for family in registry.collect()
        for sample in family.samples
        if "pool" in sample.labels
    }
"""

# The same, and forks in C, as uWSGI forks: no hook of Python runs. The first argument is the directory.
FORK_IN_C = (
    PROLOGUE
    + """
import ctypes
from pathlib import Path
from sqlalchemy import event
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.format import FORKED_WORD

def fork_in_c():
    pid = ctypes.PyDLL(None).fork()
    assert pid >= 0
    return pid

def in_child(act):
    "Run act in a child that was forked in C; return once it has ended."
    pid = fork_in_c()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            act()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0

def own():
    "Return the values of this process's pool alone; a scrape shows those of all processes."
    from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
    (recorder,) = INSTRUMENTED.recorders
    return dict(recorder.values())

directory = Path(sys.argv[1])
"""
)


def run(
    program: str, *arguments: str, prologue: str = "", seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program in a separate Python process; raise TimeoutExpired if it hangs."""
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            prologue + textwrap.dedent(program),
            *arguments,
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
