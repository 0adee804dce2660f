# SPDX-License-Identifier: Apache-2.0
"""Tests of rules that promtool runs: it evaluates them over series that a file gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.promtool_rules import reduced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def evaluate(path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``promtool test rules`` with a file, and return the ended process with its output."""
    with tempfile.TemporaryDirectory() as name:
        return subprocess.run(
            ["promtool", "test", "rules", *reduced(path, Path(name))],
            capture_output=True,
            text=True,
            check=False,
            # Collect garbage once the heap is five times as large, not twice: a fifth less processor time.
            env={**os.environ, "GOGC": "400"},
        )


def answers(
    directory: Path,
    exprs: Sequence[str],
    series: Mapping[str, str],
    when: str,
    *,
    rules: Sequence[Path] = (),
    interval: str = "15s",
) -> list[dict[str, float]]:
    """Return the answers to queries at a time, such as ``10m``: values by labels.

    promtool prints what it found, because no sample has the value that is expected.

    Args:
        directory: for the file of the test.
        exprs: the queries.
        series: values in promtool's notation, by name and labels.
        when: the time.
        rules: files of rules that are evaluated each interval.
        interval: between two samples.
    """
    expected = [{"labels": "none", "value": 4711}]
    asked = [{"expr": expr, "eval_time": when, "exp_samples": expected} for expr in exprs]
    given = [{"series": name, "values": values} for name, values in series.items()]
    tests = {"interval": interval, "input_series": given, "promql_expr_test": asked}
    (directory / "tests.yml").write_text(
        json.dumps(
            {"rule_files": [str(path) for path in rules], "evaluation_interval": interval, "tests": [tests]}
        )
    )
    done = evaluate(directory / "tests.yml")
    said = re.findall(r"got:(.*)", done.stdout + done.stderr)
    assert len(exprs) == len(said), done.stdout + done.stderr
    return [
        {labels: float(value) for labels, value in re.findall(r"(\{[^}]*\}) (\S+?)(?:,|$)", one.strip())}
        for one in said
    ]
