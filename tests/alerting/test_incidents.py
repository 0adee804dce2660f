# SPDX-License-Identifier: Apache-2.0
"""Incidents on a real PostgreSQL, seen by a real Prometheus: each fires its alerts in time, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.alerting import rules
from tests.support.incident_list import ANYWHERE, INCIDENTS, LONG, QUIET
from tests.support.incidents import seconds, thresholds

if TYPE_CHECKING:
    from tests.support.incident_run import Played
    from tests.support.incidents import Incident

pytestmark = [pytest.mark.soak, pytest.mark.requires("prometheus", "prometheus-alertmanager")]
# Slack in minutes for two scrapes, two rule evaluations, one probe and a busy machine.
GRACE = 7.5


def _seconds(name: str, faster: float) -> float:
    """Return a threshold of the run in seconds."""
    value = thresholds(faster).get(name) or rules.thresholds(rules.source())[name].default
    return float(value) if name.endswith("_seconds") else seconds(value)


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
def test_the_alerts_of_an_incident_fire_in_time(incident: Incident, incidents: Played) -> None:
    """Each expected alert fires within the time that its rule states, and not before its ``for`` has passed."""
    fired, began = incidents.fired(incident.name), incidents.began[incident.name]
    after = {tier: fired[tier][0] - began if tier in fired else None for tier in incident.expected}

    def threshold(name: str) -> float:
        return _seconds(name, incidents.faster)

    grace = incidents.seconds(GRACE)
    due = {tier: sum(map(threshold, parts)) + grace for tier, parts in incident.expected.items()}
    late = {tier: (when, due[tier]) for tier, when in after.items() if when is None or when > due[tier]}
    assert {} == late
    there = (incidents.hired if incident.is_configured else incidents.began)[incident.name]
    held_back = {
        tier: (when, threshold(parts[-1]))
        for tier, parts in incident.expected.items()
        if (when := fired[tier][0] - there) < threshold(parts[-1])
    }
    assert {} == held_back


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
def test_no_other_alert_fires(incident: Incident, incidents: Played) -> None:
    """Only expected and allowed alerts fire, and none before the incident starts."""
    fired = {
        tier: times
        for tier, times in incidents.fired(incident.name).items()
        if tier not in ANYWHERE or tier in incident.expected
    }
    there = (incidents.hired if incident.is_configured else incidents.began)[incident.name]
    assert set(fired) <= {*incident.expected, *incident.allowed}
    assert {} == {tier: times[0] - there for tier, times in fired.items() if times[0] < there}


@pytest.mark.parametrize("name", ["restart", "stopped", "blocked", "blockedone", "storm"])
def test_alerts_of_what_is_over_are_over(name: str, incidents: Played) -> None:
    """Once the database is back, the worker goes on or the storm is over, no alert keeps firing."""
    fired, last = incidents.fired(name), incidents.end - incidents.seconds(4)
    assert fired
    assert {} == {tier: times[-1] for tier, times in fired.items() if times[-1] > last}


def test_the_healthy_run_was_full(incidents: Played) -> None:
    """In the healthy run each worker was full at times and more than 60 % in use on average, and callers waited."""
    at = incidents.began["healthy"] + incidents.seconds(QUIET + LONG)
    window = f"[{incidents.seconds(LONG):.0f}s]"

    def of_workers(expr: str) -> list[float]:
        return [sample.value for sample in incidents.prometheus.query(expr, time=at)]

    ratio = 'instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="healthy"}'
    assert [1.0, 1.0] == of_workers(f"max_over_time({ratio}{window})")
    assert all(mean > 0.6 for mean in of_workers(f"avg_over_time({ratio}{window})"))
    waited = 'sqlalchemy_pool_checkout_wait_seconds_bucket{job="healthy",le="%s"}'
    (shortly,), (at_all,) = (of_workers(waited % bound) for bound in ("0.01", "+Inf"))
    assert 0.0 < shortly < at_all
