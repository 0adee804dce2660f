# SPDX-License-Identifier: Apache-2.0
"""Nothing looks healthy that is not seen: promtool evaluates each stat before and after a target is lost."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import metrics
from tests.support import grafana
from tests.support.paths import ROOT
from tests.support.promtool import evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_pool_exporter.metrics import Metric

RULES = ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml"
pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool")]
INTERVAL, LOST = (
    15,
    40,
)  # seconds between two scrapes, and after how many of them the target does not answer any more
SEEN, BLIND = "5m", "18m"  # longer than the window of the recorded rates
VALUES = {"server_state": "waiting_for_lock", "worker": "000", "pool": "orders", "database": "orders"}


def _series(metric: Metric) -> list[str]:
    """Return the names and labels of the series of a metric, in every state that it can have."""
    labels = {"job": "shop", "instance": "a", **{name: VALUES.get(name, name) for name in metric.labels}}
    if metric in (*metrics.POOL_METRICS, *metrics.PROBED_POOL_METRICS):
        labels["pool"] = "orders"
    if metric in metrics.DATABASE_METRICS:
        labels["database"] = "orders"
    if metric in metrics.POOL_METRICS and metric.kind == "gauge" and metric.key != "capacity":
        labels["worker"] = "000"
    of_value = [{**labels, metric.labels[0]: value} for value in metric.values] or [labels]
    if metric.kind == "histogram":
        of_value = [{**labels, "le": le} for le in ("0.5", "+Inf")]
    suffix = "_bucket" if metric.kind == "histogram" else ""
    return [
        f"{metric.name}{suffix}{{{', '.join(f'{name}={json.dumps(value)}' for name, value in one.items())}}}"
        for one in of_value
    ]


def _answered(directory: Path, name: str, when: str, *, is_configured: bool = True) -> dict[str, str]:
    """Return what the stats of a dashboard show at a time, by title; those without a value are not there.

    ``is_configured``: a target was scraped ``LOST`` times, and is down since. Otherwise none ever answered.
    """
    up = f"1x{LOST} 0x40" if is_configured else "0x80"
    series = [{"series": 'up{job="shop", instance="a"}', "values": up}]
    if is_configured:
        series += [
            {"series": one, "values": f"1+1x{LOST} stale"}
            for metric in metrics.ALL_METRICS
            for one in _series(metric)
        ]
    board = grafana.load(name)
    stats = {
        target.panel["title"]: grafana.interpolated(target.expr, {}, board, rate_interval="60s")
        for target in grafana.targets(board)
        if target.panel["type"] == "stat"
    }
    tests = [
        {"expr": f'label_replace({expr}, "title", "{title}", "", "")', "eval_time": when, "exp_samples": []}
        for title, expr in stats.items()
    ]
    (directory / "tests.yml").write_text(
        json.dumps(
            {
                "rule_files": [str(RULES)],
                "evaluation_interval": "15s",
                "tests": [
                    {"interval": f"{INTERVAL}s", "input_series": series, "promql_expr_test": tests},
                ],
            }
        )
    )
    done = evaluate(directory / "tests.yml")
    return dict(re.findall(r'got:.*?title="([^"]+)".*?\} (\S+)', done.stdout + done.stderr))


def _titles(name: str) -> set[str]:
    return {panel["title"] for panel in grafana.panels(grafana.load(name)) if panel["type"] == "stat"}


@pytest.mark.parametrize("name", grafana.NAMES)
def test_all_is_seen(tmp_path: Path, name: str) -> None:
    """While its target answers, every stat has a value."""
    found = _answered(tmp_path, name, SEEN)
    assert _titles(name) == found.keys()
    assert "1E+00" == found["Targets up"]


@pytest.mark.parametrize("name", grafana.NAMES)
def test_a_target_that_is_lost(tmp_path: Path, name: str) -> None:
    """When its target is lost, no stat has a value, except that none of the targets is up."""
    shown = _answered(tmp_path, name, BLIND)
    shown.pop("Targets", None)  # how many there are to be
    assert {"Targets up": "0E+00"} == shown


@pytest.mark.parametrize("name", grafana.NAMES)
def test_a_target_that_never_answered(tmp_path: Path, name: str) -> None:
    """When nothing was ever scraped, no stat has a value."""
    assert {} == _answered(tmp_path, name, BLIND, is_configured=False)
