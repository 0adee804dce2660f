# SPDX-License-Identifier: Apache-2.0
"""The comparison of predicted and measured waits runs and writes its tables into a page; its figures are not tested."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.newest, pytest.mark.soak]


def test_tables(tmp_path: Path) -> None:
    """A quick run puts both tables, with each row, between the markers of the page."""
    page = tmp_path / "sizing.md"
    page.write_text("before\n<!-- validation:start -->\nyesterday\n<!-- validation:end -->\nafter\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sizing", "--quick", "--output", page],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- validation:start -->\nMeasured by `python -m benchmarks.sizing")
    assert text.endswith("<!-- validation:end -->\nafter\n")
    assert "yesterday" not in text
    assert "| psycopg | exponential | 3 |" in text
    assert "| psycopg | exponential |" in text.partition("| advised |")[2]
