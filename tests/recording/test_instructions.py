# SPDX-License-Identifier: Apache-2.0
"""The processor's instructions of a checkout and its return: a figure that no load of the machine changes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.recording import checkout_cy
from tests.support import instructions
from tests.support.paths import ROOT
from tests.support.sources import is_compiled

if TYPE_CHECKING:
    from pathlib import Path

# What each way may add, in what two empty listeners add, with 15 % for other releases of Python, SQLAlchemy and
# compilers. Measured on CPython 3.13 and SQLAlchemy 2.1: calls compiled 0.28, 0.37 and 0.47, interpreted 1.83, 2.53 and
# 3.03; tasks compiled 0.28, 1.14 and 1.45, interpreted 1.89, 4.21 and 5.21. A new task is most of what it adds: its
# name has to be asked for, and it has to be remembered.
COMPILED = {
    "calls": {"without sites": 0.33, "by default": 0.44, "with sites": 0.58},
    "tasks": {"without sites": 0.33, "by default": 1.32, "with sites": 1.67},
}
INTERPRETED = {
    "calls": {"without sites": 2.07, "by default": 2.83, "with sites": 3.31},
    "tasks": {"without sites": 2.18, "by default": 4.85, "with sites": 6.0},
}


def counted(folder: Path, caller: str) -> dict[str, float]:
    """Return how many instructions a cycle takes, by way."""
    program = [sys.executable, "-m", "tests.support.instructions", caller]
    valgrind = [
        "valgrind",
        "--tool=callgrind",
        "--dump-after=getppid",
        f"--callgrind-out-file={folder / 'profile'}",
    ]
    done = subprocess.run(
        [*valgrind, *program],
        cwd=ROOT,
        # Hashes of texts decide about collisions.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    # The first profile is what came before the cycles of the first way, and so on.
    totals = [
        int(found[1])
        for at in range(1, 2 * len(instructions.WAYS) + 1)
        if (
            found := re.search(
                r"^(?:totals|summary): (\d+)", (folder / f"profile.{at}").read_text(), re.MULTILINE
            )
        )
    ]
    return dict(zip(instructions.WAYS, [total / instructions.CYCLES for total in totals[1::2]], strict=True))


@pytest.mark.soak
@pytest.mark.requires("valgrind")
@pytest.mark.skipif(platform.python_implementation() != "CPython", reason="another interpreter")
@pytest.mark.parametrize("caller", instructions.CALLERS)
def test_instructions_of_a_checkout_and_return(tmp_path: Path, caller: str) -> None:
    """A checkout and its return add no more than so many instructions.

    Compiled they add fewer than two empty listeners, but for the first ones of a task.
    """
    cycle = counted(tmp_path, caller)
    listeners = cycle["listeners"] - cycle["nothing"]
    most = (COMPILED if is_compiled(checkout_cy) else INTERPRETED)[caller]
    added = {way: round((cycle[way] - cycle["nothing"]) / listeners, 2) for way in most}
    assert {way: share for way, share in added.items() if share > most[way]} == {}, added
