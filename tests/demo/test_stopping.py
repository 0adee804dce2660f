# SPDX-License-Identifier: Apache-2.0
"""When the demo is stopped or killed, or its output is no longer read, it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.running_demo import demo, has
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.running_demo import Demo

pytestmark = pytest.mark.newest


def shared_memory_keys() -> set[int]:
    """Return the keys of the machine's shared memory segments; PostgreSQL's key is its data directory's inode."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {int(line.split()[0]) & 0xFFFFFFFF for line in lines}


def blocks_signals(running: Demo) -> bool:
    """Return whether the process blocks SIGINT, which is the first thing that the demo does."""
    for line in Path(f"/proc/{running.process.pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) & 1 << signal.SIGINT - 1)
    return False


def plays(running: Demo) -> bool:
    """Read the output up to the first scene, and return True."""
    return bool(running.read_until("scene 1 of 5"))


@pytest.mark.parametrize(
    ("moment", "times"),
    [
        pytest.param(blocks_signals, 1, id="while it imports"),
        pytest.param(has("pool-demo-*"), 3, id="as its directory is made"),
        pytest.param(has("pool-demo-*/data/global/pg_control"), 1, id="in the middle of initdb"),
        pytest.param(has("pool-demo-*/data/postmaster.pid"), 3, id="as the server starts"),
        pytest.param(has("pool-demo-*/.s.PGSQL.5432"), 1, id="as the server listens"),
        pytest.param(plays, 3, id="in a scene"),
    ],
)
def test_ctrl_c_is_a_clean_stop_at_any_moment(
    directory: Path, moment: Callable[[Demo], bool], times: int
) -> None:
    """Ctrl-C, once or repeatedly, ends the demo with status 0 and one last line, and leaves nothing behind."""
    with demo(directory, "--port", "0") as running:
        running.wait_for(moment)
        keys = {path.stat().st_ino & 0xFFFFFFFF for path in directory.glob("pool-demo-*/data")}
        for _ in range(times):
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.01)  # so that the kernel does not merge the signals
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert output.endswith("stopped\n")
    assert keys.isdisjoint(shared_memory_keys())


def test_termination_is_a_clean_stop(directory: Path) -> None:
    """SIGTERM ends the demo as Ctrl-C does."""
    with demo(directory, "--port", "0") as running:
        running.wait_for(has("pool-demo-*/.s.PGSQL.5432"))
        running.process.terminate()
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert output.endswith("stopped\n")


def test_a_check_that_was_cut_short_is_no_success(directory: Path) -> None:
    """With --duration, Ctrl-C ends the demo cleanly but with status 130, since not every scene was checked."""
    with demo(directory, "--duration", "60", "--port", "0") as running:
        running.wait_for(has("pool-demo-*/.s.PGSQL.5432"))
        running.process.send_signal(signal.SIGINT)
        status, output, errors = running.end()
    assert (errors, status) == ("", 128 + signal.SIGINT)
    assert output.endswith("stopped before every scene was checked\n")


def test_its_processes_end_with_it_however_it_ends(directory: Path) -> None:
    """When the demo is killed, its workers and its sidecar end; only PostgreSQL is left running."""
    with demo(directory, "--port", "0") as running:
        running.read_until("scene 1 of 5")
        children = children_of(running.process.pid)
        assert len(children) == 4
        running.process.kill()
        running.end()
    server = [pid for pid in children if command_of(pid).partition("\0")[0].endswith("/postgres")]
    try:
        assert len(server) == 1
        assert eventually(lambda: [pid for pid in children if command_of(pid)] == server)
    finally:
        os.kill(server[0], signal.SIGINT)
        assert eventually(lambda: not command_of(server[0]))
        for left in directory.iterdir():
            shutil.rmtree(left)


def children_of(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def command_of(pid: int) -> str:
    """Return the command line of a process, or an empty string if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_reader_that_goes_away_ends_it(directory: Path) -> None:
    """If the reader of its output closes the pipe, the demo ends silently and leaves nothing behind."""
    with demo(directory, "--port", "0") as running:
        running.read_until("scene 1 of 5")
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.stderr is not None
        errors = running.process.stderr.read()
        status = running.process.wait()
    assert (errors, status) == ("", 1)
