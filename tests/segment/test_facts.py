# SPDX-License-Identifier: Apache-2.0
"""What a worker says of its process: enough to find it, and nothing that is secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.segment import facts
from sqlalchemy_pool_exporter.segment.command import shown_words
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.format import FACTS_AT, HEADER_BYTES
from tests.support.paths import ROOT
from tests.support.segments import FORKS, Process, Scraper, processes
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = FORKS
ROOM = HEADER_BYTES - FACTS_AT


def shown(directory: Path, *, worker_label: bool = True) -> dict[str, dict[str, str]]:
    """Return the labels of ``worker_info`` by worker."""
    samples = Scraper(directory, worker_label=worker_label).scrape().samples
    found = {
        dict(labels)["worker"]: dict(labels)
        for (name, labels), value in samples.items()
        if name == "sqlalchemy_pool_exporter_worker_info" and value == 1
    }
    return {number: {k: v for k, v in labels.items() if k != "worker"} for number, labels in found.items()}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with processes(tmp_path) as make:
        yield make


def test_each_live_worker(tmp_path: Path) -> None:
    """Each live worker has one sample with its pid, program, command and start; a gone one has none."""
    before = datetime.now(UTC).timestamp()
    with Worker(tmp_path) as one, Worker(tmp_path) as two:
        one.do("pool", "orders")
        two.do("pool", "orders")
        found = shown(tmp_path)
        assert {int(labels["pid"]) for labels in found.values()} == {one.pid, two.pid}
        assert {labels["command"] for labels in found.values()} == {"workers.py"}
        assert {labels["program"] for labels in found.values()} == {"workers.py"}
        for labels in found.values():
            began = datetime.fromisoformat(labels["started"])
            assert began.tzinfo is not None
            # Seconds are cut off; a clock tick of the kernel and a busy machine leave some room.
            assert before - 2 <= began.timestamp() <= datetime.now(UTC).timestamp()
        assert shown(tmp_path, worker_label=False) == found
        two.kill()
        assert set(shown(tmp_path)) == {"000"}
        one.kill()
        assert shown(tmp_path) == {}


def test_a_forked_child_says_its_own(tmp_path: Path) -> None:
    """A forked child says its own pid and start."""
    with Worker(tmp_path) as parent:
        parent.do("pool", "orders")
        child = parent.do("fork", "orders", 1)
        found = shown(tmp_path)
        os.kill(child, 9)
        assert [int(found[number]["pid"]) for number in ("000", "001")] == [parent.pid, child]
        assert found["000"]["started"] <= found["001"]["started"]


# Words of a command, and what is shown of them.
COMMANDS = {
    "--workers 4 --bind 127.0.0.1:8000 app:app": "--workers 4 --bind 127.0.0.1:8000 app:app",
    "-A examples.servers.tasks worker -c 4": "-A examples.servers.tasks worker -c 4",
    "--database postgresql://u:hunter2@h/db x": "--database … x",
    "postgresql+psycopg://u:hunter2@h/db": "…",
    "--password hunter2 app": "--password … app",
    "--password --hunter2 app": "--password … app",
    "--db-pass=hunter2 app": "--db-pass=… app",
    "--workers=4 PGPASSWORD=hunter2": "--workers=… PGPASSWORD=…",
    "--api-key hunter2 --secret-token hunter2 run": "--api-key … --secret-token … run",
    "-p hunter2 -phunter2 -u scott": "-p … -p… -u …",
    "scott/hunter2@db worker1@host": "… …",
    "--conninfo dbname=a\xa0password=hunter2": "--conninfo …",
    '{"password":"hunter2"} $(hunter2)': "… …",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a sk-hunter2hunter2hunter2": "… …",
    "/srv/app/3f786850e387550fdab836ed7e6dc881de23001b/main": "…",
    "-A app worker -lINFO -Qorders --concurrency 4": "-A app worker -l… -Q… --concurrency 4",
    "--bind :8000 -w 4 -k gevent --preload app:app": "--bind :8000 -w 4 -k … --preload app:app",
    # No list of the options that take a secret is complete.
    "--jwt hunter2 --otp hunter2 --redis redis:hunter2 --signature hunter2": "--jwt … --otp … --redis … --signature …",
    "-W hunter2 -i hunter2 -k hunter2 -w hunter2 --": "-W … -i … -k … -w … --",
    "-password hunter2 app": "-p… … app",
    "password hunter2 PASSWORD hunter2 password: hunter2": "password … PASSWORD … … …",
    "user:hunter2 -H Authorization:hunter2": "… -H …",
    "--unknown --flag app": "--unknown --flag …",
    "": "",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_no_secrets(words: str) -> None:
    """Words that may be secret are left out; the others are shown."""
    said = " ".join(shown_words(words.split(" ") if words else []))
    assert COMMANDS[words] == said


@pytest.mark.parametrize(
    ("argv", "program", "command"),
    [
        (["/venv/bin/gunicorn", "--workers", "4"], "gunicorn", "gunicorn --workers 4"),
        (["/lib/celery/__main__.py", "worker"], "celery", "celery worker"),
        (["-c"], Path(sys.executable).name, Path(sys.executable).name),
        ([], Path(sys.executable).name, Path(sys.executable).name),
        ([""], Path(sys.executable).name, Path(sys.executable).name),
        (["prögramm", "größe"], "prögramm", "prögramm größe"),
        (["a\udcff", "b\udcff", "c\nd", 'e"'], "…", "… … … …"),
        ([Path("/bin/x"), 7], "x", "x 7"),
    ],
)
def test_program_and_command(
    monkeypatch: pytest.MonkeyPatch, argv: list[Any], program: str, command: str
) -> None:
    """Program and command come from Python's arguments, whatever these are."""
    monkeypatch.setattr(sys, "argv", argv)
    said = facts.read(facts.of_this_process())
    assert said.process is not None
    assert (program, command) == (said.process.program, said.process.command)


@pytest.mark.parametrize("word", ["x" * 5000, "\U0001d518" * 5000])
def test_long_commands(monkeypatch: pytest.MonkeyPatch, directory: Path, word: str) -> None:
    """Facts fit into the header however long the command is, and say its first words."""
    monkeypatch.setattr(sys, "argv", [word] * 5000)
    said = facts.of_this_process()
    assert len(said) <= ROOM
    process = facts.read(said).process
    assert process is not None
    assert (len(process.program), len(process.command)) == (64, 120)
    Lease(directory).close()
    assert Reader(directory).read().errors == dict.fromkeys(
        ("unreadable", "foreign", "version", "damaged"), 0
    )


HOSTILE = [
    {"pid": "7"},
    {"pid": True},
    {"pid": -1},
    {"pid": 10**300},
    {"pid": 1.5},
    {"pid": None, "program": "x"},
]
ODD = [7, None, ["x"], {"x": 1}, "x" * 300, "a\nb", "\ud800", "\0"]


@pytest.mark.parametrize("said", HOSTILE)
def test_no_process_without_a_pid(tmp_path: Path, process: Callable[..., Process], said: object) -> None:
    """A worker whose pid is none has no sample; its counts are shown."""
    _say(process(), json.dumps(said).encode())
    assert shown(tmp_path) == {}
    assert Scraper(tmp_path).errors() == {}


@pytest.mark.parametrize("odd", ODD)
def test_odd_facts_are_left_out(tmp_path: Path, process: Callable[..., Process], odd: object) -> None:
    """A fact of another type, too long or not printable is shown as an empty label."""
    _say(process(), json.dumps({"pid": 7, "program": odd, "command": odd, "started": "x"}).encode())
    assert shown(tmp_path) == {"000": {"pid": "7", "program": "", "command": "", "started": "x"}}


def _say(process: Process, said: bytes) -> None:
    with process.lease.path.open("r+b") as file:
        file.seek(FACTS_AT)
        file.write(said.ljust(ROOM, b"\0"))


def test_a_spawned_process_has_its_parents_command(tmp_path: Path) -> None:
    """A process that multiprocessing spawns, as uvicorn does, shows the command of its server."""
    script = tmp_path / "server.py"
    script.write_text(
        "import multiprocessing\n"
        "from sqlalchemy_pool_exporter.segment import facts\n"
        "def say(): print(facts.of_this_process().decode(), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=say)\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = subprocess.run(
        [sys.executable, script, "--workers", "4"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert json.loads(done.stdout)["command"] == "server.py --workers 4"
