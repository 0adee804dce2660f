# SPDX-License-Identifier: Apache-2.0
"""Our writer of the text and OpenMetrics formats produces the same bytes as prometheus_client's, for any metric."""

from __future__ import annotations

import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import exposition as their_text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import METRIC_TYPES, Metric
from prometheus_client.openmetrics import exposition as their_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter import metrics as catalogue
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import EXPORTER_METRICS, FLEET_METRICS, POOL_METRICS, PROCESS_METRICS
from sqlalchemy_pool_exporter.segment import block as segment
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.series_cy import Samples, Series
from sqlalchemy_pool_exporter.series_cy import number as written_number
from tests.support.segments import new_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True)
LABELS = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
# Any UTF-8 text, with the characters that need escaping drawn often.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('\\"\n{}=, ', max_size=6)
VALUES = (
    st.floats()
    | st.integers(-(10**6), 10**13).map(lambda millionths: millionths / 1e6)
    | st.integers(0, 10**16).map(lambda thousandths: thousandths / 1e3)
    | st.integers(-(10**12), 10**12)
    | st.sampled_from([0.0, -0.0, 1e6, 1e15, 1e16, -1e7, 5e-324])
)


class Families:
    """A registry that returns given families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def expected_text(families: Iterable[Metric]) -> bytes:
    registry: Any = Families(families)
    return their_text.generate_latest(registry)


def expected_openmetrics(families: Iterable[Metric]) -> bytes:
    registry: Any = Families(families)
    written: bytes = their_openmetrics.generate_latest(registry)
    return written


def as_go(written: bytes) -> bytes:
    """Remove the leading zero of exponents such as ``e+006``, which old releases of prometheus_client write."""
    return re.sub(rb"e\+0(?=\d\d\b)", b"e+", written)


def assert_written_alike(families: Iterable[Metric], ours: Iterable[Metric]) -> None:
    assert as_go(expected_text(families)) == as_go(exposition.text(ours))
    assert as_go(expected_openmetrics(families)) == as_go(exposition.openmetrics(ours))


@st.composite
def samples(draw: st.DrawFn, name: str, *, plain: bool) -> Sample:
    suffix = draw(
        st.sampled_from(["", "_total", "_bucket", "_sum", "_count", "_info", "_created", "_gcount", "_gsum"])
    )
    labels = draw(st.dictionaries(LABELS, TEXTS, max_size=3))
    if plain:
        return Sample(name + suffix, labels, draw(VALUES))
    timestamp = draw(st.none() | st.integers(0, 2**31) | st.floats(0, 2**31))
    exemplar = None
    if suffix in ("_bucket", "_total"):
        exemplar = draw(
            st.none() | st.builds(Exemplar, st.dictionaries(LABELS, TEXTS, max_size=2), VALUES, st.none())
        )
    return Sample(name + suffix, labels, draw(VALUES), timestamp, exemplar)


@st.composite
def families(draw: st.DrawFn, *, plain: bool = False) -> Metric:
    kind = draw(st.sampled_from([kind for kind in METRIC_TYPES if kind != "untyped"]))
    family = Metric(draw(NAMES), draw(TEXTS), kind, draw(st.sampled_from(["", "seconds"])))
    family.samples = draw(st.lists(samples(family.name, plain=plain), max_size=6))
    if any(sample.exemplar for sample in family.samples):
        family.type = "histogram" if family.samples[0].name.endswith("_bucket") else "counter"
        family.samples = [
            sample
            for sample in family.samples
            if not sample.exemplar or (family.type == "histogram") == sample.name.endswith("_bucket")
        ]
    return family


@given(VALUES)
@example(1000000.0)
@example(1234567.891)
@example(999999.9999999999)
@example(-12345678.0)
@example(float("nan"))
def test_numbers(value: float) -> None:
    """A number is written as Go formats it."""
    assert as_go(floatToGoString(value).encode()) == written_number(value).encode()


@given(st.lists(families() | families(plain=True), max_size=4))
def test_families_of_others(given_families: list[Metric]) -> None:
    """Families of any type, with or without timestamps and exemplars, are written as prometheus_client writes them."""
    assert_written_alike(given_families, given_families)


@given(
    families(plain=True).filter(
        lambda family: family.type in ("counter", "gauge", "histogram", "info") and ":" not in family.name
    )
)
def test_families_of_our_own(theirs: Metric) -> None:
    """A family of kept series has the same samples and the same text as an equal family of new samples."""
    ours = exposition.Family(theirs.name, theirs.documentation, theirs.type, theirs.unit)
    created = [sample for sample in theirs.samples if sample.name.endswith(("_created", "_gcount", "_gsum"))]
    theirs.samples = [
        sample for sample in theirs.samples if sample not in created
    ]  # our metrics have no such suffixes
    for name, labels, value, *_ in theirs.samples:
        ours.groups.append(Samples(Series(catalogue.Metric(name, "gauge", ""), labels), (value,)))
    assert_written_alike([theirs], [ours])
    assert repr(theirs.samples) == repr(ours.samples)


def test_a_sample_without_a_value() -> None:
    """A sample whose value is None raises an error, as in prometheus_client, instead of writing a wrong line."""
    family = Metric("odd", "", "gauge")
    family.samples = [Sample("odd", {}, None)]  # type: ignore[arg-type]
    for write in (exposition.text, exposition.openmetrics):
        with pytest.raises((TypeError, AttributeError)):
            write([family])


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[FleetCollector]:
    """A collector over two workers with two pools each; one pool's name needs every kind of escaping."""
    leases = [Lease(tmp_path) for _ in range(2)]
    for number, lease in enumerate(leases):
        for name in ("orders", 'odd "name"\\\n{é}'):
            block = new_block(
                lease, name, {"pool_class": "QueuePool", "dialect": "postgresql", "driver": "psycopg"}
            ).doubles
            block[segment.ACTIVE] = block[segment.HAS_OVERFLOW] = 1.0
            block[segment.SIZE], block[segment.MAX_OVERFLOW] = 5.0, 10.0
            block[segment.LAST_CHECKIN] = time.monotonic()
            block[segment.CONNECTIONS_USED] = 2.0
            block[segment.CONNECTIONS_AT] = block[segment.CONNECTIONS_AT + segment.HELD_SINCE] = (
                time.monotonic()
            )
            for field in range(segment.FIRST_COUNTER, segment.FIELDS):
                block[field] = 10.0**6 * number + field
    yield FleetCollector(Reader(tmp_path), worker_label=True, counters_per_worker=False)
    for lease in leases:
        lease.close()


def test_the_fleets_families(collector: FleetCollector) -> None:
    """At the first scrape and later ones, the sidecar's output equals prometheus_client's output byte for byte."""
    for _ in range(3):
        collected = list(collector.collect())
        assert_written_alike(collected, collected)


def test_the_fleets_families_are_the_catalogues(collector: FleetCollector) -> None:
    """Both formats show every family of the catalogue, with its name, type, unit and help text."""
    metrics = {
        metric.name: metric for metric in (*POOL_METRICS, *EXPORTER_METRICS, *PROCESS_METRICS, *FLEET_METRICS)
    }
    suffixes = {"counter": "_total", "info": "_info"}
    parsed = list(parse_openmetrics(exposition.openmetrics(collector.collect()).decode()))
    assert {family.name + suffixes.get(family.type, "") for family in parsed} == set(metrics)
    for family in parsed:
        metric = metrics[family.name + suffixes.get(family.type, "")]
        unit = metric.unit if metric.kind in ("gauge", "histogram") else ""
        assert (family.type, family.documentation, family.unit) == (metric.kind, metric.help, unit)
    names = {family.name for family in parse_text(exposition.text(collector.collect()).decode())}
    # The text parser strips the suffix of counters but not of info metrics, which it reads as gauges.
    assert names == {name.removesuffix("_total") for name in metrics}


@pytest.mark.requires("promtool")
def test_promtool_has_nothing_to_say(collector: FleetCollector) -> None:
    """``promtool check metrics`` accepts the text."""
    lint = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition.text(collector.collect()),
        capture_output=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")


def test_series_of_the_gone_are_forgotten(tmp_path: Path) -> None:
    """The collector keeps only the series of the last scrape, however many pools came and went."""
    collector = FleetCollector(Reader(tmp_path), worker_label=True, counters_per_worker=False)
    text = b""
    for number in range(20):
        lease = Lease(tmp_path)
        block = new_block(
            lease, f"pool {number}", {"pool_class": "QueuePool", "dialect": "x", "driver": "y"}
        ).doubles
        block[segment.ACTIVE] = 1.0
        text = exposition.text(collector.collect())
        lease.close()
    assert text.count(b"sqlalchemy_pool_pre_ping{") == 1
    assert collector._kept is not None
    owners = {owner for owner in collector._kept.owners if len(owner) == 2}
    assert owners == {("pool 19", "000")}


def test_ordinary_families_beside_them() -> None:
    """Families made by prometheus_client, such as the probes', can be exposed together with ours."""
    gauge = GaugeMetricFamily("up", 'a "help"\\\n', labels=["database"])
    gauge.add_metric(["a\\b\n"], 1)
    counter = CounterMetricFamily("failures", "", labels=["reason"])
    counter.add_metric(["x"], 3, created=5)
    both: list[Metric] = [gauge, counter]
    assert expected_text(both) == exposition.text(both)
    assert expected_openmetrics(both) == exposition.openmetrics(both)
