# SPDX-License-Identifier: Apache-2.0
"""The chart's monitors, rules and dashboards, as Prometheus and Grafana use them."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.chart_values import EXTRAS, MONITOR
from tests.support.charts import exporter, of, pod, render
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest


@pytest.mark.parametrize(
    "given", [{"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}, EXTRAS]
)
def test_monitors_find_what_they_scrape(given: dict[str, Any]) -> None:
    """The monitors' labels, port and path match the service, the pods and the exporter."""
    found = render(given)
    service, container = of("Service", found), exporter(found)
    path = given.get("config", {}).get("web", {}).get("telemetry_path", "/metrics")
    for kind, endpoints, labels, ports in (
        ("ServiceMonitor", "endpoints", service["metadata"]["labels"], service["spec"]["ports"]),
        ("PodMonitor", "podMetricsEndpoints", pod(found)["metadata"]["labels"], container["ports"]),
    ):
        monitor = of(kind, found)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = monitor["spec"][endpoints]
        assert [endpoint["port"]] == [port["name"] for port in ports]
        assert path == endpoint["path"]
        assert [service["metadata"]["namespace"]] == monitor["spec"]["namespaceSelector"]["matchNames"]
    assert service["spec"]["selector"].items() <= pod(found)["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= of("Pod", found)["metadata"]["labels"].items()


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_monitor_says_all(kind: str) -> None:
    """All settings of a monitor reach the operator under the names of its API."""
    monitor = of(kind, render(EXTRAS))
    spec = monitor["spec"]
    (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]
    assert "monitoring" == monitor["metadata"]["namespace"]
    assert {"release": "prometheus", "team": "orders"}.items() <= monitor["metadata"]["labels"].items()
    assert {"jobLabel": "app.kubernetes.io/name", "sampleLimit": 5000}.items() <= spec.items()
    same = (
        "interval",
        "scrapeTimeout",
        "scheme",
        "tlsConfig",
        "basicAuth",
        "honorLabels",
        "relabelings",
        "metricRelabelings",
    )
    assert {name: MONITOR[name] for name in same} == {name: endpoint[name] for name in same}
    assert {*same, "port", "path"} == set(endpoint)


def test_default_rules_are_the_packages() -> None:
    """Without settings, the chart renders the same rules as `sqlalchemy-pool-exporter rules`."""
    committed = yaml.safe_load(
        (ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml").read_text()
    )
    assert (
        committed["groups"]
        == of("PrometheusRule", render({"prometheusRule": {"enabled": True}}))["spec"]["groups"]
    )


def test_the_rules_of_opentelemetry_are_added_if_asked_for() -> None:
    """The groups of the repository's file come after the others, unchanged."""
    usual = of("PrometheusRule", render({"prometheusRule": {"enabled": True}}))["spec"]["groups"]
    wanted = {"enabled": True, "opentelemetry": True}
    groups = of("PrometheusRule", render({"prometheusRule": wanted}))["spec"]["groups"]
    source = ROOT / "config" / "prometheus" / "rules" / "opentelemetry.rules.yml"
    assert [*usual, *yaml.safe_load(source.read_text())["groups"]] == groups


SWITCHED = {
    "enabled": True,
    "opentelemetry": True,
    "alertLabels": {"team": "orders"},
    "thresholds": {
        "held_seconds": 1_000_000,
        "held_for": "9m",
        "wait_objective_seconds": 1,
        "fleet_labels": "job",
    },
    "alerts": {
        "SQLAlchemyPoolNoPrePing": {"disabled": True},
        "SQLAlchemyPoolStuck": {
            "warning": {"disabled": True},
            "critical": {"severity": "info", "for": "2h"},
        },
    },
}


@pytest.mark.requires("promtool")
@pytest.mark.parametrize("rule", [{"enabled": True}, SWITCHED], ids=["default", "switched"])
def test_promtool_takes_the_rules(rule: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus accepts the rules; every placeholder is replaced, and Prometheus' own templates are kept."""
    spec = of("PrometheusRule", render({"prometheusRule": rule}))["spec"]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(spec))
    said = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", path], capture_output=True, text=True, check=False
    )
    assert (0, "") == (said.returncode, said.stderr)
    assert "${" not in path.read_text()
    assert "{{ $labels.pool }}" in path.read_text()


def test_switches() -> None:
    """Thresholds, labels and switches change only the alerts and tiers that they name."""
    groups = of("PrometheusRule", render({"prometheusRule": SWITCHED}))["spec"]["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    usual = [
        rule
        for group in of("PrometheusRule", render({"prometheusRule": {"enabled": True}}))["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(usual) - 2 == len(alerts)
    (stuck,) = (rule for rule in alerts if rule["alert"] == "SQLAlchemyPoolStuck")
    assert ("2h", {"severity": "info", "team": "orders"}) == (stuck["for"], stuck["labels"])
    (held,) = (rule for rule in alerts if rule["alert"] == "SQLAlchemyPoolHeldTooLong")
    assert ("9m", True) == (held["for"], "1000000" in held["expr"])
    assert {"orders"} == {rule["labels"]["team"] for rule in alerts}


def test_dashboards() -> None:
    """Each dashboard is in a ConfigMap, unchanged, with the label that Grafana's sidecar looks for."""
    found = [
        entry
        for entry in render({"dashboards": {"enabled": True}})
        if "dashboard" in entry["metadata"]["name"]
    ]
    written = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards").glob("*.json")}
    loaded = {
        name.removeprefix("sqlalchemy-pool-"): json.loads(text)
        for entry in found
        for name, text in entry["data"].items()
    }
    assert written == loaded
    assert {"1"} == {entry["metadata"]["labels"]["grafana_dashboard"] for entry in found}
    assert any("{{pool}}" in text for entry in found for text in entry["data"].values())
