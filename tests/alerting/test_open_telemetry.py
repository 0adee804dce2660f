# SPDX-License-Identifier: Apache-2.0
"""Pools that came by OpenTelemetry: recording rules give them the names that dashboards and rules ask for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter import metrics
from tests.support import grafana
from tests.support.paths import ROOT
from tests.support.promtool import answers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool")]
RULES = ROOT / "config" / "prometheus" / "rules" / "opentelemetry.rules.yml"
DOCUMENT = ROOT / "docs" / "opentelemetry.md"
OF_POOL = 'job="shop/web", instance="a", db_client_connection_pool_name="orders"'
# As Prometheus receives them over OTLP: a pool of 5 and 10, 4 in use and 1 idle, 4 calls a second of 0.1 s.
SERIES = {
    f'db_client_connection_count{{{OF_POOL}, db_client_connection_state="used"}}': "4x80",
    f'db_client_connection_count{{{OF_POOL}, db_client_connection_state="idle"}}': "1x80",
    f"db_client_connection_idle_max{{{OF_POOL}}}": "5x80",
    f"db_client_connection_max{{{OF_POOL}}}": "15x80",
    f"db_client_connection_pending_requests{{{OF_POOL}}}": "2x80",
    f"db_client_connection_timeouts_total{{{OF_POOL}}}": "0+15x80",
    **{
        f"db_client_connection_{name}_time_seconds_{suffix}{{{OF_POOL}{le}}}": values
        for name in ("wait", "use", "create")
        for suffix, le, values in (
            ("bucket", ', le="0.05"', "0x80"),
            ("bucket", ', le="0.25"', "0+60x80"),
            ("bucket", ', le="+Inf"', "0+60x80"),
            ("count", "", "0+60x80"),
            ("sum", "", "0+6x80"),
        )
    },
}
# Stats of the dashboards for which OpenTelemetry has no metric.
UNKNOWN = {
    "Targets up",  # they are not scraped
    "Longest wait now",
    "Longest held now",
    "Stuck for",
    "Self-deadlocked",
    "Failed to connect",
    "Findings of the audit",
    "Exhaustion reports",
    "Event loop lag",
    "Behind a lock",
    "Held, idle in transaction",
    "Suspected leaks",
    "Largest site's share",
    "Configuration current",
    "Configuration read",
    "Segments shared",
}


def _asked(directory: Path, exprs: list[str]) -> list[dict[str, float]]:
    """Return the answers to queries after ten minutes: values by labels."""
    return answers(directory, exprs, SERIES, "10m", rules=[RULES])


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_what_is_recorded_is_of_the_catalogue() -> None:
    """Each recorded name is one of this project, made of a metric that the documentation lists."""
    names = {
        metric.name + suffix
        for metric in metrics.ALL_METRICS
        for suffix in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
    }
    listed = {
        name.replace(".", "_")
        for name in re.findall(r"`(db\.client\.[a-z_.]+)`", DOCUMENT.read_text("utf-8"))
    }
    for rule in _rules():
        assert rule["record"] in names
        for name in re.findall(r"(?<!\")\bdb_client_connection_\w+(?=[ {,)\n])", rule["expr"]):
            if name not in {"db_client_connection_pool_name", "db_client_connection_state"}:
                assert re.sub(r"(_total|_seconds_(bucket|count|sum))$", "", name) in listed


def test_values(tmp_path: Path) -> None:
    """State, limits, counters and histograms have the values that OpenTelemetry has, by pool."""
    expected = {
        'sqlalchemy_pool_connections{state="in_use"}': 4.0,
        'sqlalchemy_pool_connections{state="idle"}': 1.0,
        "sqlalchemy_pool_size": 5.0,
        "sqlalchemy_pool_max_overflow": 10.0,
        "sqlalchemy_pool_capacity": 15.0,
        "sqlalchemy_pool_instances": 1.0,
        "sqlalchemy_pool_pending_checkouts": 2.0,
        "rate(sqlalchemy_pool_checkout_timeouts_total[2m])": 1.0,
        "rate(sqlalchemy_pool_checkouts_total[2m])": 3.0,
        "rate(sqlalchemy_pool_checkins_total[2m])": 4.0,
        "rate(sqlalchemy_pool_hold_seconds_sum[2m])": 0.4,
        "histogram_quantile(1, rate(sqlalchemy_pool_checkout_wait_seconds_bucket[2m]))": 0.25,
    }
    found = _asked(tmp_path, list(expected))
    assert [pytest.approx(value) for value in expected.values()] == [sum(one.values()) for one in found]
    for answer in found:
        (labels,) = answer
        assert {'instance="a"', 'job="shop/web"', 'pool="orders"'} <= set(re.findall(r'\w+="[^"]*"', labels))
        assert "db_client" not in labels


def test_the_dashboards_show_them(tmp_path: Path) -> None:
    """Every stat of Overview and Pool has a value, except for those whose metric OpenTelemetry does not have."""
    stats = {
        target.panel["title"]: grafana.interpolated(target.expr, {}, board, rate_interval="60s")
        for board in map(grafana.load, ("overview", "pool"))
        for target in grafana.targets(board)
        if target.panel["type"] == "stat"
    }
    found = dict(zip(stats, _asked(tmp_path, [f"({expr}) + 0" for expr in stats.values()]), strict=True))
    assert UNKNOWN == {title for title, answer in found.items() if not answer}
    assert [pytest.approx(4 / 15)] == list(found["Fullest process"].values())
