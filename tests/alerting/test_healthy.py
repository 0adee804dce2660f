# SPDX-License-Identifier: Apache-2.0
"""Services that are well, on a real PostgreSQL before a real Prometheus: nobody is disturbed by an alert."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.healthy_list import CHANGED, FASTER, HEALTHY, HELD
from tests.support.incident_run import play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.incident_run import Played
    from tests.support.incidents import Incident

pytestmark = [pytest.mark.soak, pytest.mark.requires("prometheus", "prometheus-alertmanager")]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Play all scenes at once."""
    with play(HEALTHY, tmp_path_factory.mktemp("healthy"), faster=FASTER, changed=CHANGED) as played:
        yield played


@pytest.mark.parametrize("scene", HEALTHY, ids=lambda scene: scene.name)
def test_nothing_above_info_fires(scene: Incident, healthy: Played) -> None:
    """No warning and no critical alert fires, from the start of the workers to the end, so nobody is paged."""
    fired = healthy.fired(scene.name)
    began = healthy.began[scene.name]
    assert {} == {
        tier: [times[0] - began, times[-1] - began] for tier, times in fired.items() if tier[1] != "info"
    }
    assert {} == healthy.pages(scene.name)


# Expressions with windows in minutes, and between which values they are.
SCENES = [
    ('avg_over_time(instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="ninety"}[7m])', 0.75, 1.0),
    ('avg_over_time(instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="full"}[7m])', 0.75, 1.0),
    ('max(max_over_time(sqlalchemy_pool_pending_checkouts{job="bursts"}[7m]))', 1, 8),
    ('max_over_time(sqlalchemy_pool_connections{job="idle",state="in_use"}[2m])', 0, 0),
    # Each of the two workers does 26 a second if nothing else runs.
    ('sum(rate(sqlalchemy_pool_connects_total{job="fifty"}[7m]))', 15, 55),
    ('sum(increase(sqlalchemy_pool_nested_checkouts_total{job="nested"}[7m]))', 10, 10000),
    ('max_over_time(instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="nested"}[7m])', 1.0, 1.0),
    ('max_over_time(sqlalchemy_pool_self_deadlocked{job="nested"}[7m])', 0, 0),
    ('min_over_time(sqlalchemy_pool_event_loop_lag_seconds{job="loop"}[7m])', 0.0, 5),
    ('max(max_over_time(sqlalchemy_pool_pending_checkouts{job="loop"}[7m]))', 1, 10),
    ('sum(increase(sqlalchemy_pool_closes_total{job="startfirst",reason="recycle"}[10m]))', 1, 1000),
    ('sqlalchemy_pool_exporter_workers{job="stopfirst",state="live"}', 3, 3),
    ('sum(increase(sqlalchemy_pool_connect_errors_total{job="shortly"}[15m]))', 1, 10000),
]


@pytest.mark.parametrize(("expr", "least", "most"), SCENES)
def test_a_scene_was_what_it_says(expr: str, least: float, most: float, healthy: Played) -> None:
    """The scenes had the load, the waiting callers, the recycled connections and the faults that they are about."""
    job = expr.split('job="', maxsplit=1)[1].split('"', maxsplit=1)[0]
    at = (
        healthy.began[job] + healthy.seconds(HELD)
        if job in {"ninety", "full", "bursts", "idle", "fifty", "nested", "loop", "shortly"}
        else healthy.end - healthy.seconds(1)
    )
    expr = re.sub(r"\[(\d+)m\]", lambda window: f"[{1000 * healthy.seconds(int(window[1])):.0f}ms]", expr)
    found = [sample.value for sample in healthy.prometheus.query(expr, time=at)]
    assert found
    assert all(least <= value <= most for value in found), found
