# SPDX-License-Identifier: Apache-2.0
"""The chart refuses wrong values, and the message names them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.chart_values import DATABASE
from tests.support.charts import refusal

pytestmark = pytest.mark.newest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": 1}, "additional properties 'replicas' not allowed"),
        ({"mode": "daemonset"}, "'/mode': value must be one of 'deployment', 'sidecar'"),
        ({"image": {"name": "x"}}, "'/image': additional properties 'name' not allowed"),
        ({"image": {"digest": "latest"}}, "'/image/digest': 'latest' does not match"),
        ({"containerPort": "http"}, "'/containerPort': got string, want integer"),
        ({"containerPort": 70000}, "'/containerPort': maximum: got 70,000, want 65,535"),
        ({"portName": "a-name-that-is-too-long"}, "'/portName': maxLength"),
        (
            {"config": {"web": {"listen_address": ":1"}}},
            "'/config/web': additional properties 'listen_address'",
        ),
        ({"config": {"web": {"scrape_timeout_seconds": 0}}}, "'/config/web/scrape_timeout_seconds': minimum"),
        ({"config": {"log": {"level": "loud"}}}, "'/config/log/level': value must be one of"),
        ({"config": {"databases": [{"name": "a"}]}}, "'/config/databases/0': missing property 'dsnSecret'"),
        (
            {"config": {"databases": [{**DATABASE, "dsn": "postgresql://u:p@h/d"}]}},
            "'/config/databases/0': additional properties 'dsn' not allowed",
        ),
        ({"web": {"config": "basic_auth_users: {}"}}, "'/web': additional properties 'config' not allowed"),
        ({"extraEnvs": [{"value": "x"}]}, "'/extraEnvs/0': missing property 'name'"),
        ({"livenessProbe": {"httpGet": {}}}, "'/livenessProbe': additional properties 'httpGet' not allowed"),
        ({"service": {"port": 0}}, "'/service/port': minimum"),
        (
            {"commonLabels": {"app.kubernetes.io/name": "shop"}},
            "invalid propertyName 'app.kubernetes.io/name'",
        ),
        (
            {"podLabels": {"app.kubernetes.io/instance": "shop"}},
            "invalid propertyName 'app.kubernetes.io/instance'",
        ),
        ({"prometheusRule": {"alertLabels": {"severity": "page"}}}, "invalid propertyName 'severity'"),
        ({"service": {"labels": {"app.kubernetes.io/name": "s"}}}, "invalid propertyName"),
        ({"serviceMonitor": {"intervall": "1m"}}, "'/serviceMonitor': additional properties 'intervall'"),
        ({"serviceMonitor": {"interval": "often"}}, "'/serviceMonitor/interval': 'often' does not match"),
        (
            {"serviceMonitor": {"basicAuth": {"password": "p"}}},
            "'/serviceMonitor/basicAuth/password': got string",
        ),
        (
            {"prometheusRule": {"alerts": {"A": {"off": True}}}},
            "'/prometheusRule/alerts/A': additional properties",
        ),
        (
            {"prometheusRule": {"alerts": {"A": {"info": {"for": "5 min"}}}}},
            "'/prometheusRule/alerts/A/info/for'",
        ),
        (
            {"prometheusRule": {"thresholds": {"held_seconds": True}}},
            "'/prometheusRule/thresholds/held_seconds'",
        ),
        ({"sidecar": {"directory": "relative"}}, "'/sidecar/directory': 'relative' does not match"),
        (
            {"dashboards": {"labels": {"grafana_dashboard": 1}}},
            "'/dashboards/labels/grafana_dashboard': got number",
        ),
    ],
)
def test_schema_refuses(given: dict[str, Any], said: str) -> None:
    """An unknown or invalid value is refused, and the message names it; no value takes a secret in plain text."""
    assert said in refusal(given)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"thresholds": {"held": 60}}, r"thresholds.held: unknown; there are: .*held_seconds"),
        (
            {"thresholds": {"held_seconds": "5m"}},
            r"thresholds.held_seconds: expected a number as 300 is, got \"5m\"",
        ),
        ({"thresholds": {"held_for": 5}}, r"thresholds.held_for: expected a duration as 1m is, got \"5\""),
        ({"thresholds": {"held_for": ""}}, r"thresholds.held_for: expected a duration"),
        ({"thresholds": {"rate_window": "0s"}}, r"thresholds.rate_window: a window of nothing"),
        ({"thresholds": {"fleet_labels": "a-b"}}, r"thresholds.fleet_labels: expected labels"),
        (
            {"thresholds": {"wait_objective_seconds": 0.3}},
            r"wait_objective_seconds: expected one of 0.0005, .*got 0.3",
        ),
        (
            {"thresholds": {"wait_objective_ratio": 99}},
            r"wait_objective_ratio: expected at most 1, got 99",
        ),
        (
            {"alerts": {"SQLAlchemyPoolHeld": {}}},
            r"alerts.SQLAlchemyPoolHeld: unknown; .*SQLAlchemyPoolHeldTooLong",
        ),
        (
            {"alerts": {"SQLAlchemyPoolNoPrePing": {"critical": {"for": "1m"}}}},
            r"alerts.SQLAlchemyPoolNoPrePing.critical: it has no such tier, only: warning",
        ),
    ],
)
def test_rules_refuse(rule: dict[str, Any], said: str) -> None:
    """An unknown or invalid threshold or switch is refused; the message says which exist or what is expected."""
    assert re.search(said, refusal({"prometheusRule": {"enabled": True, **rule}}))


def test_names_of_databases_are_unique() -> None:
    """Two databases of the same name are refused at rendering, because the exporter would not start with them."""
    assert "two of the name orders" in refusal({"config": {"databases": [DATABASE, DATABASE]}})


def test_service_monitor_needs_its_service() -> None:
    """A service monitor without a service is refused."""
    said = refusal({"serviceMonitor": {"enabled": True}, "service": {"enabled": False}})
    assert "serviceMonitor.enabled needs service.enabled" in said
