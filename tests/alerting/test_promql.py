# SPDX-License-Identifier: Apache-2.0
"""The harder queries of the dashboards, computed by promtool on series with a known answer.

Each query must be right for an application's own endpoint, for a sidecar with the label `worker`, and for a sidecar
that sums over its workers.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support import grafana
from tests.support.promtool import evaluate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool")]

# Two workers with a capacity of 5 each, one of them full; the sidecar's capacity is the sum of both.
SIDECAR = {
    'size{pool="p", worker="000"}': 4,
    'size{pool="p", worker="001"}': 4,
    'max_overflow{pool="p", worker="000"}': 1,
    'max_overflow{pool="p", worker="001"}': 1,
    'capacity{pool="p"}': 10,
    'connections{pool="p", worker="000", state="in_use"}': 5,
    'connections{pool="p", worker="001", state="in_use"}': 1,
    'last_checkin_timestamp_seconds{pool="p", worker="000"}': 40,
    'last_checkin_timestamp_seconds{pool="p", worker="001"}': 50,
    # A pool without a limit.
    'connections{pool="null", worker="000", state="in_use"}': 7,
    'last_checkin_timestamp_seconds{pool="null", worker="000"}': 10,
}
# The same, summed by the sidecar; size and max_overflow are those of one worker.
SUMMED = {
    'size{pool="p"}': 4,
    'max_overflow{pool="p"}': 1,
    'capacity{pool="p"}': 10,
    'connections{pool="p", state="in_use"}': 6,
    'last_checkin_timestamp_seconds{pool="p"}': 50,
}
# One process with a capacity of 5.
APPLICATION = {
    'size{pool="p"}': 4,
    'max_overflow{pool="p"}': 1,
    'capacity{pool="p"}': 5,
    'connections{pool="p", state="in_use"}': 5,
    'last_checkin_timestamp_seconds{pool="p"}': 0,  # no connection has been returned yet
    'longest_held_seconds{pool="p"}': 33,
}
NO_LIMIT = {key: value for key, value in SIDECAR.items() if 'pool="null"' in key}
NOTHING: list[float] = []
OF_TARGETS = ("overview", "pool", "database")  # Fleet asks for recorded series
DATABASES = {
    **SIDECAR,
    'database_pool_info{database="d", pool="p"}': 1,
    'database_pool_info{database="d", pool="null"}': 1,
    'database_pool_info{database="e", pool="p"}': 1,
    'database_max_connections{database="d"}': 20,
    'database_reserved_connections{database="d"}': 4,
    'database_connections{database="d", state="idle"}': 9,
    'database_connections{database="d", state="active"}': 6,
}


@pytest.mark.parametrize(
    ("series", "title", "expected"),
    [
        (SIDECAR, "Fullest process", [1.0]),
        (SUMMED, "Fullest process", [0.6]),
        (APPLICATION, "Fullest process", [1.0]),
        (SIDECAR, "In use against capacity, by process B", [5.0]),
        (SUMMED, "In use against capacity, by process B", [10.0]),
        (APPLICATION, "In use against capacity, by process B", [5.0]),
        # At 60 s the full worker has had no return for 20 s, the other is not full, and the third pool has no limit.
        (SIDECAR, "Stuck for, by process", [0.0, 20.0]),
        (SUMMED, "Stuck for, by process", [0.0]),
        # Nothing was ever returned: it is stuck for as long as the oldest checkout is.
        (APPLICATION, "Stuck for, by process", [33.0]),
        (SIDECAR, "Stuck for", [20.0]),
        (NO_LIMIT, "Stuck for", NOTHING),
        (SIDECAR, "Connections that the traffic needs C", [10.0]),
        (DATABASES, "What the pools could ask for A", [10.0, 10.0]),
        (DATABASES, "What the pools could ask for B", [6.0, 13.0]),
        (DATABASES, "What the pools could ask for C", [16.0]),
        (DATABASES, "Ceiling of the pools", [10 / 16]),
        (DATABASES, "Fullest database", [15 / 16]),
        (DATABASES, "Fewest connections left", [1.0]),
        (DATABASES, "Taken by others", [2.0]),
    ],
)
def test_panel(tmp_path: Path, series: dict[str, float], title: str, expected: list[float]) -> None:
    """A panel's query gives the right answer for each way to scrape the pool."""
    name, _, ref = title.rpartition(" ")
    if ref not in {"A", "B", "C"}:
        name, ref = title, "A"
    found = {
        grafana.interpolated(target.expr, {}, board, rate_interval="4s")
        for board in map(grafana.load, OF_TARGETS)
        for target in grafana.targets(board)
        if (target.panel["title"], target.ref) == (name, ref)
    }
    for expr in found:  # two dashboards can have panels of the same title
        assert sorted(expected) == pytest.approx(_computed(tmp_path, expr, series))
    assert found


def _computed(directory: Path, expr: str, series: dict[str, float]) -> list[float]:
    """Return a query's values at 60 s: promtool prints them, because the expected sample does not match."""
    (directory / "empty.yml").write_text("groups: []")
    tests = directory / "tests.yml"
    given = [
        {
            "series": "sqlalchemy_pool_" + name.replace("{", '{job="j", instance="i", ', 1),
            "values": f"{value}x20",
        }
        for name, value in series.items()
    ]
    query = {"expr": f"sort({expr})", "eval_time": "60s", "exp_samples": [{"labels": "none", "value": 1}]}
    tests.write_text(
        json.dumps(
            {
                "rule_files": ["empty.yml"],
                "evaluation_interval": "5s",
                "tests": [{"interval": "5s", "input_series": given, "promql_expr_test": [query]}],
            }
        )
    )
    done = evaluate(tests)
    (got,) = re.findall(r"got:(.*)", done.stdout + done.stderr)
    return sorted(float(value) for value in re.findall(r"\} (\S+?)(?:,|$)", got))
