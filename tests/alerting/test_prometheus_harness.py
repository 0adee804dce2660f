# SPDX-License-Identifier: Apache-2.0
"""The Prometheus that the tests run: it works, and reports its own failures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Gauge

from sqlalchemy_pool_exporter import serve
from tests.support.prometheus import Prometheus, QueryError, scraping

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.prometheus import Alert

pytestmark = [pytest.mark.newest, pytest.mark.requires("prometheus")]

RULES = """
groups:
  - name: test
    rules:
      - alert: TooWarm
        expr: temperature > 20
        labels: {severity: warning}
        annotations: {summary: It is too warm.}
"""


def test_prometheus(tmp_path: Path) -> None:
    """Prometheus scrapes, answers instant and range queries, and its alert fires."""
    (tmp_path / "test.rules.yml").write_text(RULES)
    registry = CollectorRegistry()
    Gauge("temperature", "Temperature.", registry=registry).set(21)
    with serve(host="127.0.0.1", port=0, registry=registry) as endpoint:
        config = scraping({"room": [f"127.0.0.1:{endpoint.port}"]}, rules=[tmp_path / "test.rules.yml"])
        began = time.time()
        with Prometheus(config, tmp_path / "prometheus") as prometheus:
            (sample,) = prometheus.wait_for('temperature{job="room"}')
            labels = {
                "__name__": "temperature",
                "job": "room",
                "instance": f"127.0.0.1:{endpoint.port}",
            }
            assert (labels, 21.0) == sample
            alerts: list[Alert] = []

            def fires() -> bool:
                # It ends for a moment if a scrape comes too late.
                alerts[:] = prometheus.alerts()
                return [one.state for one in alerts] == ["firing"]

            prometheus.wait_until(fires, "the alert")
            (alert,) = alerts
            assert ("TooWarm", "warning", "It is too warm.") == (
                alert.labels["alertname"],
                alert.labels["severity"],
                alert.annotations["summary"],
            )
            prometheus.wait_until(lambda: prometheus.firing() == {"TooWarm"}, "the alert")
            now = time.time()
            (series,) = prometheus.query_range("temperature * 2", now - 10, now, 0.5)
            assert {42.0} == {value for _, value in series.points}
            assert [labels] == prometheus.series("temperature", began, now)
            assert [({}, 1.0)] == prometheus.query("scalar(vector(1))")
            assert [] == prometheus.query("temperature", time=began - 3600)
            with pytest.raises(QueryError, match="parse error"):
                prometheus.query("temperature{")


def test_wrong_configuration(tmp_path: Path) -> None:
    """If Prometheus cannot start, the error has the reason."""
    with pytest.raises(RuntimeError, match="field scrape_config not found"):
        Prometheus("scrape_config: []", tmp_path)


def test_killed(tmp_path: Path) -> None:
    """If Prometheus has ended, a query raises an error at once."""
    with Prometheus(scraping({}), tmp_path) as prometheus:
        prometheus.end()
        with pytest.raises(RuntimeError, match="prometheus ended:"):
            prometheus.query("up")
