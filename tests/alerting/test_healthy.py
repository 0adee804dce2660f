# SPDX-License-Identifier: Apache-2.0
"""Services that are well, on a real PostgreSQL before a real Prometheus: nobody is disturbed by an alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.healthy_list import CHANGED, FASTER, HEALTHY
from tests.support.incidents import play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.incidents import Incident, Played

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
    assert set() == healthy.pages(scene.name)


@pytest.mark.parametrize(
    ("expr", "least", "most"),
    [
        ('avg_over_time(instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="ninety"}[40s])', 0.75, 1.0),
        ('avg_over_time(instance_pool_worker:sqlalchemy_pool_in_use:ratio{job="full"}[40s])', 0.75, 1.0),
        ('max(max_over_time(sqlalchemy_pool_pending_checkouts{job="bursts"}[40s]))', 1, 8),
        ('max_over_time(sqlalchemy_pool_connections{job="idle",state="in_use"}[10s])', 0, 0),
        # Each worker would do 27 a second if nothing else ran.
        ('sum(rate(sqlalchemy_pool_connects_total{job="fifty"}[40s]))', 15, 55),
        ('sum(increase(sqlalchemy_pool_closes_total{job="startfirst",reason="recycle"}[60s]))', 1, 1000),
        ('sqlalchemy_pool_exporter_workers{job="stopfirst",state="live"}', 3, 3),
        ('sum(increase(sqlalchemy_pool_connect_errors_total{job="shortly"}[100s]))', 1, 10000),
    ],
)
def test_a_scene_was_what_it_says(expr: str, least: float, most: float, healthy: Played) -> None:
    """The scenes had the load, the waiting callers, the recycled connections and the faults that they are about."""
    job = expr.split('job="', maxsplit=1)[1].split('"', maxsplit=1)[0]
    at = (
        healthy.began[job] + 60.0
        if job in {"ninety", "full", "bursts", "idle", "fifty"}
        else healthy.end - 5.0
    )
    found = [sample.value for sample in healthy.prometheus.query(expr, time=at)]
    assert found
    assert all(least <= value <= most for value in found), found
