# SPDX-License-Identifier: Apache-2.0
"""The output of the demo, run as a process on a real PostgreSQL, as users run it."""

from __future__ import annotations

import os
import pty
import re
import signal
import urllib.request
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from demo.scenes import SCENES
from tests.support.running_demo import demo
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest

# A shorter show than the option --duration allows: a slow machine adds what it needs.
SHORT = """if True:
    import asyncio, sys
    from demo import cli, show, table
    from demo.options import Options

    cli.keep_quiet()
    sys.exit(asyncio.run(show.run(Options(port=0, duration=5), table.screen())))
"""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("-c", SHORT), id="short"),
        pytest.param(("-m", "demo", "--duration", "15", "--port", "0"), id="whole", marks=pytest.mark.soak),
    ],
)
def test_every_scene_is_visible_and_the_demo_ends_by_itself(
    directory: Path, command: tuple[str, ...]
) -> None:
    """With --duration the demo plays every scene, prints the numbers that show it, and ends with status 0."""
    with demo(directory, command=command) as running:
        url = running.read_until("metrics: open ").split()[2]
        running.read_until("scene 2 of 5: starvation")

        def answering() -> str:
            """Return the metrics once the last probe of the database has an answer, which may take it a second."""
            with urllib.request.urlopen(url) as response:  # noqa: S310 - a URL of the demo
                said: str = response.read().decode()
            return said if 'sqlalchemy_pool_database_up{database="demo"} 1' in said else ""

        exposed = eventually(answering)
        assert exposed
        running.read_until("  workers: 2 live; server: ")
        status, output, errors = running.end()
    assert (errors, status) == ("", 0)
    assert {'pool="orders"', 'pool="billing"', 'pool="reports"'} == {
        line.partition("{")[2].partition("}")[0] for line in exposed.splitlines() if "_capacity{" in line
    }
    assert {'worker="000"', 'worker="001"'} == set(re.findall(r'worker="\d+"', exposed))
    for number, scene in enumerate(SCENES, start=1):
        assert f"scene {number} of 5: {scene.name}\n  {scene.story}\n" in output
        for evidence in scene.evidence:
            assert evidence.series in output
    for played, function, state in (("starvation", "query", "active"), ("leak", "leak", "idle")):
        shown = output.split(f": {played}\n")[1].partition("users got")[0]
        for pool, holder in (("orders", r"Task-\d+"), ("billing", r"Thread-\d+.*")):
            who = rf"demo\.{pool}:create_app\.<locals>\.{function}:\d+ \({holder}\) in process \d+"
            assert re.search(rf"{pool}: held for [\d.]+ s by {who}, {state} in the server for", shown), shown
    assert output.endswith("every scene was visible in the metrics\n")


@pytest.mark.soak
def test_a_scene_that_is_not_visible_is_named(directory: Path) -> None:
    """If the metrics do not show a scene, the status is 1 and the last line names the scene."""
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


@pytest.mark.soak
def test_a_terminal_gets_a_table_that_is_redrawn(directory: Path) -> None:
    """On a terminal the demo redraws one table of the pools, instead of printing more lines."""
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
        with suppress(OSError):  # Linux reports a closed other end of a terminal as EIO
            while True:
                seen += terminal.read(65536)
        assert running.process.wait() == 0
    assert b"\x1b[1A" in seen  # the cursor goes up, to draw over the previous table
    assert seen.rstrip().endswith(b"stopped")


def test_help_is_complete(directory: Path) -> None:
    """The help has each option with its default, the place of the files, and every exit status."""
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
