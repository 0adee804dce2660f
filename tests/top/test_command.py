# SPDX-License-Identifier: Apache-2.0
"""``sqlalchemy-pool-exporter top``: the table for a pipe, the JSON, and what is said if it cannot be shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.cli import main
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.page import HOLDERS, LABELS
from tests.support.sidecar import Sidecar
from tests.support.web_files import PASSWORD, hashed, users

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.segments import Process


pytestmark = pytest.mark.newest  # the command uses the standard library alone


def hold(process: Process, seconds: float, row: int = 0, **fields: float) -> None:
    process.hold(time.monotonic() - seconds, row, site="app:pay:88", **fields)


def once(capsys: pytest.CaptureFixture[str], *options: object) -> list[list[str]]:
    """Return the lines of the table, each as its cells."""
    assert main(["top", "--once", *map(str, options)]) == 0
    return [[cell for cell in line.split("  ") if cell] for line in capsys.readouterr().out.splitlines()]


def test_table(tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]) -> None:
    """The table has what is wrong, the pools, and who holds what; rates are over a second."""
    orders = process()
    orders.storage.pages.write_texts(HOLDERS, ["worker-1"])
    orders.storage.pages.write_texts(LABELS, ["GET /pay"])
    for row in range(3):
        hold(orders, 100 - row, row, holder=1, label=1)
    orders.block[layout.LAST_CHECKIN] = time.monotonic() - 90
    orders.wait(time.monotonic() - 80)
    process("billing").kill()
    lines = once(capsys, "--directory", tmp_path)
    assert [str(tmp_path)] == [lines[0][0].partition(",")[0]]
    assert "2 pools, 1 process, 3 in use, 0 idle, 1 waiting" in lines[0][0]
    assert ["critical", "warning"] == [lines[2][0], lines[3][0]]
    assert lines[2][1].startswith("orders: stuck: worker 000")
    by_name = {line[0]: [cell.strip() for cell in line] for line in lines if line}
    assert ["POOL", "STATE", "IN USE", "IDLE"] == by_name["POOL"][:4]
    assert ["orders", "stuck, held long", "3/3", "0", "1", "1"] == by_name["orders"][:6]
    assert ["0", "0", "-", "-"] == by_name["orders"][8:]
    assert ["billing", "gone", "0", "0"] == by_name["billing"][:4]
    (oldest, *_) = [line for line in lines if len(line) > 1 and line[1] == "app:pay:88"]
    assert oldest[0].startswith("1 min 4")
    assert ["app:pay:88", "orders", "worker-1", "GET /pay"] == oldest[1:5]


def test_what_is_left_out(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """A filter leaves pools out, and a table without pools says so by its first line."""
    hold(process(), 1)
    process("billing")
    assert any(
        line and line[0] == "billing" for line in once(capsys, "--directory", tmp_path, "--filter", "BILL")
    )
    lines = once(capsys, "--directory", tmp_path, "--pool", "nothing")
    assert 1 == len(lines)
    assert "2 pools" in lines[0][0]


def test_names_that_a_terminal_would_obey(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters in names do not reach the terminal."""
    process("or\x1b[31mders\n")
    assert main(["top", "--once", "--directory", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "or\ufffd[31mders\ufffd" in out


def test_findings(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has what the audit finds."""
    process().block[layout.RECYCLE] = 60.0
    assert main(["top", "--once", "--directory", str(tmp_path)]) == 0
    assert "info      orders: recycle_short: pool_recycle is 60 s" in capsys.readouterr().out.splitlines()


def test_json(tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON is that of ``/api/v1/pools``."""
    hold(process(), 1)
    assert main(["top", "--json", "--directory", str(tmp_path)]) == 0
    board = json.loads(capsys.readouterr().out)
    assert (1, "orders", "app:pay:88") == (
        board["version"],
        board["pools"][0]["name"],
        board["held"][0]["site"],
    )


def test_secrets(
    tmp_path: Path,
    process: Callable[..., Process],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password comes from the environment or from a file, and a file that cannot be read is named."""
    process()
    web, secret = tmp_path / "web.yaml", tmp_path / "password"
    web.write_text(json.dumps(users(ada=hashed())), "utf-8")
    secret.write_text(f"{PASSWORD}\n", "utf-8")
    with Sidecar("--directory", tmp_path, "--web-config-file", web) as sidecar:
        once(capsys, "--url", sidecar.url, "--user", "ada", "--password-file", secret)
        monkeypatch.setenv(environment.PASSWORD, PASSWORD)
        once(capsys, "--url", sidecar.url, "--user", "ada")
        assert main(["top", "--once", "--url", sidecar.url]) == 1
        assert "401" in capsys.readouterr().err
    assert main(["top", "--once", "--url", "http://localhost", "--token-file", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_the_directory_of_the_environment(
    tmp_path: Path,
    process: Callable[..., Process],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without options the directory is that of the environment; without that, the message says what to give."""
    process()
    monkeypatch.setenv(environment.DIRECTORY, str(tmp_path))
    assert "1 pool," in once(capsys)[0][0]
    monkeypatch.delenv(environment.DIRECTORY)
    assert main(["top", "--once"]) == 1
    assert f"give --url or --directory, or set {environment.DIRECTORY}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--url", "http://x", "--directory", "."],
        ["--once", "--json"],
        ["--interval", "0.1"],
        ["--interval", "x"],
    ],
)
def test_wrong_calls(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Options that contradict each other, and an interval that would load the machine, are wrong calls."""
    with pytest.raises(SystemExit) as caught:
        main(["top", *options])
    assert 2 == caught.value.code
    assert "usage:" in capsys.readouterr().err


def test_without_textual(tmp_path: Path) -> None:
    """Where the screen's library is missing, the message names the extra; the table needs none."""
    hide = "import sys; sys.modules['textual'] = None; from sqlalchemy_pool_exporter.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", hide, "top", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    assert "is missing: pip install 'sqlalchemy-pool-exporter[top]'" in done.stderr
    assert 0 == subprocess.run([*command, "--once"], capture_output=True, check=False).returncode


@pytest.mark.parametrize("command", [["top", "--once"], ["top", "--json"], ["audit", "--json"], ["audit"]])
def test_any_encoding(tmp_path: Path, process: Callable[..., Process], command: list[str]) -> None:
    """Names that the encoding of the output lacks are written all the same; JSON has them unchanged."""
    name = "bestellungen-\u00fc-\u6ce8\u6587-\U0001f642"
    process(name).block[layout.RECYCLE] = 60.0
    where = [str(tmp_path)] if command[0] == "audit" else ["--directory", str(tmp_path)]
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "sqlalchemy_pool_exporter", *command, *where],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (int(command[0] == "audit"), b"") == (done.returncode, done.stderr)
        out = done.stdout.decode(encoding)
        if "--json" in command:
            assert [name] == [one["pool"] for one in json.loads(out)["findings"]]
        else:
            assert name.encode(encoding, "replace").decode(encoding) in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize("command", [["top", "--once"], ["top", "--json"], ["audit", "--json"], ["audit"]])
def test_an_output_that_takes_nothing(
    tmp_path: Path, process: Callable[..., Process], command: list[str]
) -> None:
    """A full disk, or a reader that has gone, is said in a line, and the status is that of a failure."""
    process()
    where = [str(tmp_path)] if command[0] == "audit" else ["--directory", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full, os.fdopen(writer, "wb") as pipe:
        for output, reason in ((full, "No space left on device"), (pipe, "Broken pipe")):
            done = subprocess.run(
                [sys.executable, "-m", "sqlalchemy_pool_exporter", *command, *where],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert (2 if command[0] == "audit" else 1) == done.returncode
            (line,) = done.stderr.splitlines()
            assert line.startswith("sqlalchemy-pool-exporter: cannot write to the standard output: ")
            assert reason in line


def test_an_output_that_is_closed(
    tmp_path: Path,
    process: Callable[..., Process],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a standard output that is said in a line, too."""
    process()
    monkeypatch.setattr(sys, "__stdout__", None)
    for option in ("--once", "--json"):
        assert main(["top", option, "--directory", str(tmp_path)]) == 1
        assert "cannot write to the standard output: it is closed" in capsys.readouterr().err


def test_without_a_terminal(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Without a terminal the screen does not wait for ever: the message says what to use."""
    process()
    pytest.importorskip("textual")
    command = [sys.executable, "-m", "sqlalchemy_pool_exporter", "top", "--directory", str(tmp_path)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "there is no terminal: --once prints a table" in done.stderr
