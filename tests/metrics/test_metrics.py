# SPDX-License-Identifier: Apache-2.0
"""The exposition: both formats are valid and show the catalogue's families."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    BUCKETS,
    EXPORTER_METRICS,
    POOL_METRICS,
    PROCESS_METRICS,
)
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.recording.recorder import Recorder
from tests.support.fakes import connect
from tests.support.paths import ROOT
from tests.support.samples import Exposition
from tools import generate_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

METRICS = {
    metric.name: metric
    for metric in (*POOL_METRICS, *EXPORTER_METRICS, *PROCESS_METRICS, *APPLICATION_METRICS)
}


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry that shows a QueuePool and a NullPool, each used once, and one connection held."""
    registry = CollectorRegistry()
    pools = [QueuePool(connect, recycle=200), NullPool(connect)]
    handles = [
        instrument(pool, name=f'odd "name"\\{at}\n', registry=registry) for at, pool in enumerate(pools)
    ]
    for pool in pools:
        pool.connect().close()
    held = pools[0].connect()
    yield registry
    held.close()
    for handle in handles:
        handle.close()


def test_every_metric_of_the_catalogue_is_exposed(registry: CollectorRegistry) -> None:
    """Each metric of the catalogue is exposed with its name, type, help and labels, and no other metric is."""
    found = {}
    for family in parse_text(generate_latest(registry).decode()):
        suffix = {"counter": "_total"}.get(family.type, "")
        found[family.name + suffix] = family
    assert set(found) == set(METRICS)
    for name, metric in METRICS.items():
        family = found[name]
        kind = "gauge" if metric.kind == "info" else metric.kind
        assert (family.type, family.documentation) == (kind, metric.help)
        if metric in PROCESS_METRICS:
            continue  # these processes have no event loop
        own = {label for sample in family.samples for label in sample.labels} - {"pool", "le"}
        assert own == set(metric.labels) - {"pool"}, name
        if metric.values:
            values = {sample.labels[metric.labels[0]] for sample in family.samples}
            assert values == set(metric.values)


def test_names_follow_the_conventions() -> None:
    """Names have one prefix, base units, and ``_total`` exactly for counters; each help text is a sentence."""
    for metric in METRICS.values():
        assert re.fullmatch(r"sqlalchemy_pool_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".") or metric.help.endswith("report it.")
        assert not re.search(r"_(ms|millis|minutes|percent)(_|$)", metric.name)


def test_openmetrics_parses(registry: CollectorRegistry) -> None:
    """A strict parser accepts the OpenMetrics format, and finds the info type and the units."""
    families = {family.name: family for family in parse_openmetrics(generate_openmetrics(registry).decode())}
    assert families["sqlalchemy_pool"].type == "info"
    assert families["sqlalchemy_pool_checkout_wait_seconds"].unit == "seconds"
    assert families["sqlalchemy_pool_checkouts"].type == "counter"


@pytest.mark.requires("promtool")
def test_promtool_finds_nothing(registry: CollectorRegistry) -> None:
    """``promtool check metrics`` accepts the text format without a remark."""
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (result.returncode, result.stdout.decode(), result.stderr.decode()) == (0, "", "")


def test_histograms_are_cumulative(registry: CollectorRegistry) -> None:
    """Bucket counts never decrease up to +Inf, which equals the count, and every bound is exposed."""
    for family in parse_text(generate_latest(registry).decode()):
        if family.type != "histogram":
            continue
        for pool in {sample.labels["pool"] for sample in family.samples}:
            samples = [sample for sample in family.samples if sample.labels["pool"] == pool]
            buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
            values = [sample.value for sample in buckets]
            assert values == sorted(values)
            assert [float(sample.labels["le"]) for sample in buckets] == [*BUCKETS, float("inf")]
            assert values[-1] == next(sample.value for sample in samples if sample.name.endswith("_count"))


def test_one_odd_pool_does_not_fail_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that cannot be read is left out and counted as a scrape error; the other pools are shown."""
    registry = CollectorRegistry()
    odd, fine = QueuePool(connect), QueuePool(connect)
    instrument(odd, name="odd", registry=registry)
    instrument(fine, name="fine", registry=registry)
    recorder, original = getattr(INSTRUMENTED.hooks_of(odd), "recorder", None), Recorder.snapshot

    def snapshot(self: Recorder) -> Snapshot:
        if self is recorder:
            raise ValueError("odd")
        return original(self)

    monkeypatch.setattr(Recorder, "snapshot", snapshot)
    exposition = Exposition(registry)
    assert exposition.value("connections", "fine", state="idle") == 0
    assert exposition.get("connections", "odd", state="idle") is None
    assert exposition.samples["sqlalchemy_pool_exporter_scrape_errors_total", frozenset()] == 1


def test_labels_are_escaped(registry: CollectorRegistry) -> None:
    """Any pool name can be exposed: quotes, backslashes and newlines are escaped."""
    assert r'pool="odd \"name\"\\0\n"' in generate_latest(registry).decode()


def test_documentation_is_current() -> None:
    """docs/metrics.md and the generated parts of the README are up to date."""
    assert generate_metrics.metrics_reference() == (ROOT / "docs" / "metrics.md").read_text()
    assert generate_metrics.readme() == (ROOT / "README.md").read_text()
