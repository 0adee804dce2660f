# SPDX-License-Identifier: Apache-2.0
"""``sqlalchemy-pool-exporter rules``: writes the rules with thresholds, and lists these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from sqlalchemy_pool_exporter import bundled
from sqlalchemy_pool_exporter.alerting import rules
from tests.support import sidecar
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest  # the rules do not depend on dependency versions

THRESHOLDS = rules.thresholds((ROOT / "config" / "alerts.yml").read_text("utf-8"))


def test_the_command_writes_the_rules(tmp_path: Path) -> None:
    """``rules --out`` creates the directory and writes the rules with the given thresholds; the last --set wins."""
    directory = tmp_path / "rules"
    settings = ["--set", "held_seconds=5", "--set", "held_seconds=60", "--set", "held_for=0s"]
    ended = sidecar.run("rules", "--out", directory, *settings)
    assert (0, f"{directory / rules.FILE}\n", "") == (ended.returncode, ended.stdout, ended.stderr)
    expected = rules.render(bundled.text("alerts.yml"), {"held_seconds": "60", "held_for": "0s"})
    assert expected == (directory / rules.FILE).read_text("utf-8")
    (held,) = [
        rule
        for group in yaml.safe_load(expected)["groups"]
        for rule in group["rules"]
        if rule.get("alert") == "SQLAlchemyPoolHeldTooLong"
    ]
    assert ("sqlalchemy_pool_longest_held_seconds > 60", "0s") == (held["expr"], held["for"])


def test_the_rules_of_opentelemetry_are_written_too_if_asked_for(tmp_path: Path) -> None:
    """``--opentelemetry`` writes a second file, as it is in the repository."""
    ended = sidecar.run("rules", "--out", tmp_path, "--opentelemetry")
    written = [tmp_path / rules.FILE, tmp_path / rules.OPENTELEMETRY]
    assert (0, "".join(f"{path}\n" for path in written)) == (ended.returncode, ended.stdout)
    source = ROOT / "config" / "prometheus" / "rules" / rules.OPENTELEMETRY
    assert source.read_text("utf-8") == written[1].read_text("utf-8")


def test_the_command_lists_the_thresholds() -> None:
    """``rules --list`` prints one line for each threshold, with its default and help."""
    lines = sidecar.run("rules", "--list").stdout.splitlines()
    assert list(THRESHOLDS) == [line.split()[0] for line in lines]
    assert all(
        threshold.default in line and threshold.help in line
        for line, threshold in zip(lines, THRESHOLDS.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "{}", "--set", "held_seconds"], "expected NAME=VALUE, got 'held_seconds'"),
        (["--out", "{}", "--set", "held_seconds=long"], "held_seconds: expected a number from 0, got 'long'"),
        ([], "one of the arguments --out --list is required"),
    ],
)
def test_a_wrong_call_writes_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    """A wrong call ends with status 2 and an error that says what was expected."""
    directory = tmp_path / "rules"
    ended = sidecar.run("rules", *(argument.format(directory) for argument in arguments))
    assert (2, True) == (ended.returncode, said in ended.stderr)
    assert not directory.exists()


def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """If the rules cannot be written, the status is 1, as for every failure of the environment."""
    (tmp_path / "file").touch()
    ended = sidecar.run("rules", "--out", tmp_path / "file")
    assert (1, True) == (ended.returncode, "cannot write" in ended.stderr)
