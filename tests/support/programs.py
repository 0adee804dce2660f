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
