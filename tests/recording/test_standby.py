# SPDX-License-Identifier: Apache-2.0
"""``serve()`` in several processes that share a directory: one serves, the others stand by and take over."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import EndpointError, serve
from sqlalchemy_pool_exporter.segment.lock import is_held
from tests.recording.test_http_server import ask
from tests.support.ports import free_port
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks")

# Serves, and answers each line of its input with its state.
PROCESS = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from sqlalchemy_pool_exporter import serve
server = serve(int(sys.argv[1]), "127.0.0.1")
print(server.port, flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        server.close()
    print("standby" if server.is_standby else "serving", repr(server), flush=True)
"""


class Process:
    """A process that calls ``serve()``."""

    def __init__(self, directory: Path | None, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port)],
            env={**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory or "")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line() or 0)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def state(self, command: str = "") -> str:
        """Return whether it serves or stands by."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._line().split()[0]

    def kill(self) -> str:
        """Kill it, and return its log."""
        self._process.send_signal(signal.SIGKILL)
        return self._process.communicate(timeout=SECONDS)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.returncode is None:
            self.kill()


def test_take_over(tmp_path: Path) -> None:
    """One process serves, the others stand by; after ``kill -9`` one takes over, and after ``close()`` another."""
    port = free_port()
    with (
        Process(tmp_path, port) as first,
        Process(tmp_path, port) as second,
        Process(tmp_path, port) as third,
    ):
        assert [one.state() for one in (first, second, third)] == ["serving", "standby", "standby"]
        assert {one.port for one in (first, second, third)} == {port}
        assert ask(port) == 200
        first.kill()
        assert eventually(lambda: sorted([second.state(), third.state()]) == ["serving", "standby"])
        assert ask(port) == 200
        serving, standby = (second, third) if second.state() == "serving" else (third, second)
        serving.state("close")
        assert eventually(lambda: standby.state() == "serving")
        assert ask(port) == 200
        log = standby.kill()
        assert log.count("stands by") == 1
        assert log.count("\n") == 2, log


def test_close_while_standing_by(tmp_path: Path) -> None:
    """A server that is closed while it stands by ends its thread and never takes over."""
    port = free_port()
    with Process(tmp_path, port) as other:
        server = serve(port, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path)
        assert server.is_standby
        assert server.url == f"http://127.0.0.1:{port}/metrics"
        assert "standing by" in repr(server)
        server.close()
        server.close()
        assert "closed" in repr(server)
        assert other.state() == "serving"


def test_foreign_program(tmp_path: Path) -> None:
    """If another program has the port, there is an error at once, with a directory, too."""
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(EndpointError, match=r"in use by a program that does not share .*choose another port"),
    ):
        serve(port, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path)
    serve(port, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path).close()


def test_without_directory() -> None:
    """Without a directory the second process gets an error that says what to do."""
    with Process(None) as first:
        with pytest.raises(EndpointError) as raised:
            serve(first.port, "127.0.0.1")
        for remedy in ("SQLALCHEMY_POOL_EXPORTER_DIR", "wsgi_app()", "a port for each process"):
            assert remedy in str(raised.value)


def test_twice_in_one_process(tmp_path: Path) -> None:
    """A second server of the same process on the same port is an error: nothing would ever show its registry."""
    with (
        serve(free_port(), "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path) as server,
        pytest.raises(EndpointError, match="this process serves there already"),
    ):
        serve(server.port, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path)


def test_port_0(tmp_path: Path) -> None:
    """With port 0 each process serves, on a port of its own."""
    with Process(tmp_path) as first, Process(tmp_path) as second:
        assert [first.state(), second.state()] == ["serving"] * 2
        assert first.port != second.port


def is_locked(path: Path) -> bool:
    """Return whether there is a file, and a process holds its lock: it makes the file a moment earlier."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return is_held(descriptor)
    finally:
        os.close(descriptor)


def test_lock_file_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file of the lock is deleted, the process that serves makes it anew, and the next one stands by."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.recording.http_server.SECONDS", 0.1)
    with serve(free_port(), "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path) as server:
        (lock,) = tmp_path.iterdir()
        lock.unlink()
        assert eventually(lambda: is_locked(lock))
        with Process(tmp_path, server.port) as other:
            assert other.state() == "standby"


def test_directory_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the directory cannot be used, a process that finds the port taken stands by and warns: it is not harmed."""
    gone = tmp_path / "gone"
    with serve(free_port(), "127.0.0.1") as holder, caplog.at_level(logging.WARNING):
        standby = serve(holder.port, "127.0.0.1", registry=CollectorRegistry(), directory=gone)
        assert standby.is_standby
        assert "cannot be told" in caplog.text
        port = holder.port
        holder.close()
        assert eventually(lambda: not standby.is_standby)
        assert ask(port) == 200
        standby.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_preloaded_parent(tmp_path: Path) -> None:
    """A parent that served before it forked goes on; a child that calls ``serve()`` stands by, and takes over."""
    parent = serve(free_port(), "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path)
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child
        os.close(to_child)
        server = serve(parent.port, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path)
        os.write(to_parent, b"standby" if server.is_standby else b"serving")
        os.read(from_parent, 1)
        os._exit(0)
    try:
        os.close(from_parent)
        assert os.read(from_child, 100) == b"standby"
        assert ask(parent.port) == 200
        parent.close()
        assert eventually(lambda: _answers(parent.port))
    finally:
        os.close(to_child)
        os.waitpid(child, 0)
        os.close(from_child)
        os.close(to_parent)


def _answers(port: int) -> bool:
    try:
        return ask(port) == 200
    except OSError:
        return False
