# SPDX-License-Identifier: Apache-2.0
"""The interpreter exits with instrumentation as it does without."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize(
    "ending",
    [
        "held = engine.connect()",
        "held = engine.connect(); keep = [held]; keep.append(keep)",
        "engine.pool.connect = engine.pool.connect; sys.engine = engine; sys.held = engine.connect()",
        "threading.Thread(target=hold, daemon=True).start(); out.wait()",
        "held = engine.connect(); raise LookupError",
        "import atexit; held = engine.connect(); atexit.register(held.close); atexit.register(engine.dispose)",
    ],
)
def test_the_interpreter_ends_as_before(ending: str) -> None:
    """A process that exits with connections in use has the same status, output and errors as without instrumenting.

    But for what the log says of connections that nobody disposed of.
    """
    program = """
        import sys, threading, time
        from prometheus_client import CollectorRegistry
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool
        import sqlalchemy_pool_exporter

        options = {"connect_args": {"check_same_thread": False}, "pool_pre_ping": True}
        out = threading.Event()

        def hold():
            held = engine.connect()
            out.set()
            time.sleep(60)

        engine = create_engine("sqlite://", poolclass=QueuePool, **options)
        engine.connect().close()
        if sys.argv[1:]:
            sqlalchemy_pool_exporter.instrument(engine)
            sqlalchemy_pool_exporter.serve(port=0, host="127.0.0.1")
        """
    program = textwrap.dedent(program) + ending
    bare, instrumented = (
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for arguments in ([], ["instrumented"])
    )
    errors = [line for line in instrumented.stderr.splitlines() if not line.startswith("pool 'sqlite' (pid ")]
    assert (bare.returncode, bare.stdout, bare.stderr.splitlines()) == (
        instrumented.returncode,
        instrumented.stdout,
        errors,
    )
