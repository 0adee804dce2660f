# SPDX-License-Identifier: Apache-2.0
"""Inhibition, as shipped, in a real Alertmanager: one page for one incident, and it names the cause."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from sqlalchemy_pool_exporter.alerting import rules
from sqlalchemy_pool_exporter.sidecar.config import Database
from tests.support.alertmanager import CONFIG, Alertmanager
from tests.support.incident_list import INCIDENTS as STAGED
from tests.support.incidents import seconds
from tests.support.paths import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.alertmanager import Labels, Seen
    from tests.support.incident_run import Played
    from tests.support.incidents import Incident

pytestmark = pytest.mark.newest
alertmanager_needed = pytest.mark.requires("prometheus-alertmanager", "amtool")

RULES = yaml.safe_load(CONFIG.read_text("utf-8"))["inhibit_rules"]
ALERTS = {
    (rule["alert"], rule["labels"]["severity"])
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "rules" / rules.FILE).read_text("utf-8"))[
        "groups"
    ]
    for rule in group["rules"]
    if "alert" in rule
}
# Labels of the alerts by how much of a fleet an alert is about.
FLEET = {"cluster": "eu", "namespace": "shop", "job": "orders", "pool": "orders"}
INSTANCE = {**FLEET, "instance": "orders-1:10079"}
WORKER = {**INSTANCE, "worker": "001"}
DATABASE = {"database": "orders"}
# What fires for an incident, in whatever order, and the page that is left; the incident is of the pool `orders`.
INCIDENTS: dict[str, tuple[list[tuple[str, str, Labels]], str]] = {
    "slow queries": (
        [
            ("Starvation", "warning", WORKER),
            ("Starvation", "critical", INSTANCE),
            ("WaitBudgetBurn", "critical", FLEET),
            ("WaitBudgetBurn", "warning", FLEET),
            ("NearCapacity", "info", WORKER),
        ],
        "Starvation",
    ),
    "connections kept": (
        [
            ("Stuck", "critical", WORKER),
            ("Stuck", "warning", WORKER),
            ("Starvation", "critical", INSTANCE),
            ("WaitBudgetBurn", "critical", FLEET),
            ("HeldTooLong", "warning", WORKER),
        ],
        "Stuck",
    ),
    "a pool waits for itself": (
        [
            ("SelfDeadlock", "critical", WORKER),
            ("SelfDeadlock", "warning", WORKER),
            ("Stuck", "critical", WORKER),
            ("Starvation", "critical", INSTANCE),
            ("Starvation", "warning", WORKER),
            ("WaitBudgetBurn", "critical", FLEET),
            ("NearCapacity", "info", WORKER),
        ],
        "SelfDeadlock",
    ),
    "the database is away": (
        [
            ("ConnectErrors", "critical", INSTANCE),
            ("ConnectErrors", "warning", INSTANCE),
            ("Starvation", "critical", INSTANCE),
            ("WaitBudgetBurn", "critical", FLEET),
        ],
        "ConnectErrors",
    ),
    "the database is full": (
        [
            ("DatabaseNearMax", "critical", {**FLEET, **DATABASE}),
            ("DatabaseNearMax", "warning", {**FLEET, **DATABASE}),
            ("FleetCeiling", "critical", DATABASE),
            ("ConnectErrors", "warning", INSTANCE),
        ],
        "DatabaseNearMax",
    ),
    "slow connecting": ([("WaitBudgetBurn", "critical", FLEET)], "WaitBudgetBurn"),
    "a warning beside a page": (
        [("HeldTooLong", "warning", WORKER), ("Starvation", "critical", INSTANCE)],
        "Starvation",
    ),
}

# The page of each incident that is staged; those that are not here have none.
PAGES = {
    "slow": "Starvation",
    "nested": "SelfDeadlock",
    "kept": "Stuck",
    "restart": "ConnectErrors",
    "ceiling": "FleetCeiling",
    "refused": "DatabaseNearMax",
    "broken": "WorkerGone",
    "readonly": "ReadOnlyServer",
}


@pytest.mark.soak
@pytest.mark.requires("prometheus", "prometheus-alertmanager")
@pytest.mark.parametrize("incident", STAGED, ids=lambda incident: incident.name)
def test_an_incident_pages_once_and_names_the_cause(incident: Incident, incidents: Played) -> None:
    """Of a staged incident the pager gets the alert that names its cause, and no other."""
    expected = [PAGES[incident.name]] if incident.name in PAGES else []
    pages = incidents.pages(incident.name)
    assert expected == list(pages), pages


def _alert(name: str, severity: str, labels: Labels) -> Labels:
    return {"alertname": f"SQLAlchemyPool{name}", "severity": severity, **labels}


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    with Alertmanager(tmp_path) as alertmanager:
        yield alertmanager


def _fire(alertmanager: Alertmanager, *alerts: Labels) -> list[Seen]:
    """Let alerts fire, and return them once Alertmanager has looked at all of them."""
    alertmanager.post(*alerts)

    def looked_at() -> list[Seen]:
        seen = alertmanager.alerts()
        return (
            seen if len(seen) == len(alerts) and {"unprocessed"}.isdisjoint(one.state for one in seen) else []
        )

    seen = eventually(looked_at)
    assert seen, alertmanager.alerts()
    return seen


@alertmanager_needed
def test_alertmanager_takes_the_configuration() -> None:
    """``amtool`` accepts the file."""
    done = subprocess.run(["amtool", "check-config", CONFIG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@alertmanager_needed
@pytest.mark.parametrize("incident", INCIDENTS)
def test_one_page_is_left_and_names_the_cause(incident: str, alertmanager: Alertmanager) -> None:
    """Of all alerts that an incident fires one is sent to the pager."""
    fired, page = INCIDENTS[incident]
    _fire(alertmanager, *(_alert(*one) for one in fired))

    def critical() -> list[Labels]:
        return [
            one.labels
            for one in alertmanager.alerts()
            if one.state == "active" and one.labels["severity"] == "critical"
        ]

    # An alert is active for a moment until that which hides it has reached the inhibitor, too.
    eventually(lambda: len(critical()) == 1)
    active = critical()
    assert [f"SQLAlchemyPool{page}"] == [labels["alertname"] for labels in active]
    assert eventually(alertmanager.pages)
    assert active == [page.labels for page in alertmanager.pages()]


@alertmanager_needed
@pytest.mark.parametrize("incident", INCIDENTS)
def test_nothing_else_is_hidden(incident: str, alertmanager: Alertmanager) -> None:
    """An incident hides no alert of another pool, job, namespace or cluster."""
    alerts = [_alert(*one) for one in INCIDENTS[incident][0]]
    others = [
        {name: other.get(name, value) for name, value in labels.items()}
        for labels in alerts
        for other in ({"pool": "o", "database": "o"}, {"job": "o"}, {"namespace": "o"}, {"cluster": "o"})
    ]
    others = [labels for labels in others if labels not in alerts]  # some alerts have few of these labels
    seen = _fire(alertmanager, *alerts, *others)
    ours = {one.fingerprint for one in seen if one.labels in alerts}
    assert [] == [one.labels for one in seen if one.labels in others and one.inhibited_by & ours]


@alertmanager_needed
def test_nothing_inhibits_itself(alertmanager: Alertmanager) -> None:
    """Each alert by itself, in each of its tiers, is told."""
    alone = []
    for name, severity in sorted(ALERTS):
        of_its_own = f"{name}-{severity}"
        own = {"alertname": name, "severity": severity, "job": of_its_own, "database": of_its_own}
        alone.append({**WORKER, **own})
    assert {"active"} == {one.state for one in _fire(alertmanager, *alone)}


@alertmanager_needed
def test_a_blocked_loop_is_told_once(alertmanager: Alertmanager) -> None:
    """Why a worker stands still hides that it does, and not that another one does."""
    worker = {name: value for name, value in WORKER.items() if name != "pool"}
    stalled = _alert("WorkerStalled", "warning", worker)
    other = _alert("WorkerStalled", "warning", {**worker, "worker": "002"})
    blocked = _alert("EventLoopBlocked", "warning", worker)
    seen = _fire(alertmanager, stalled, other, blocked)
    (cause,) = [one.fingerprint for one in seen if one.labels == blocked]

    def hidden() -> list[Labels]:
        return [one.labels for one in alertmanager.alerts() if cause in one.inhibited_by]

    assert eventually(hidden)
    assert [stalled] == hidden()


@alertmanager_needed
def test_a_mistake_is_told_once(alertmanager: Alertmanager) -> None:
    """What an alert tells of a pool's configuration hides the finding that says the same, and no other finding."""
    same, other = (
        {**_alert("Finding", "info", FLEET), "rule": rule}
        for rule in ("no_liveness_check", "pool_below_threads")
    )
    told = _alert("NoPrePing", "warning", FLEET)
    seen = _fire(alertmanager, same, other, told)
    (cause,) = [one.fingerprint for one in seen if one.labels == told]

    def hidden() -> list[Labels]:
        return [one.labels for one in alertmanager.alerts() if cause in one.inhibited_by]

    assert eventually(hidden)
    assert [same] == hidden()


def test_connect_errors_wait_for_a_full_database() -> None:
    """Errors of connecting wait until a probe has seen that the database is full, a scrape has, and rules have."""
    routes = yaml.safe_load(CONFIG.read_text("utf-8"))["route"]["routes"]
    (route,) = [one for one in routes if 'alertname="SQLAlchemyPoolConnectErrors"' in one["matchers"]]
    scrape_and_rules = 2 * 15.0
    probe = Database.model_fields["interval_seconds"].default
    assert probe + scrape_and_rules <= seconds(route["group_wait"])


def test_a_page_is_hidden_by_a_page_alone() -> None:
    """What may hide a critical alert is critical itself, so that a page is left."""
    for rule in RULES:
        may_be_critical = not any(matcher.startswith("severity") for matcher in rule["target_matchers"])
        assert not may_be_critical or 'severity="critical"' in rule["source_matchers"]


def test_the_alerts_that_it_names_exist() -> None:
    """Each alert that the configuration names is one of the rules."""
    named = {
        f"SQLAlchemyPool{name}"
        for prefix in re.findall(r"SQLAlchemyPool\(?([\w|]+)", CONFIG.read_text("utf-8"))
        for name in prefix.split("|")
    }
    assert named <= {name for name, _ in ALERTS} | {"SQLAlchemyPool"}
