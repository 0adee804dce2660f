# SPDX-License-Identifier: Apache-2.0
"""Builder: makes families from (metric, labels, value) and keeps their series from scrape to scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import builder_cy, exposition
from sqlalchemy_pool_exporter.builder_cy import Builder
from sqlalchemy_pool_exporter.metrics import BUCKETS, Metric
from sqlalchemy_pool_exporter.segment.snapshot import Histogram

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.builder_cy import Kept
    from sqlalchemy_pool_exporter.segment.snapshot import Value

METRICS = (
    Metric("sqlalchemy_pool_size", "gauge", "Size."),
    Metric("sqlalchemy_pool_closes_total", "counter", "Closes.", ("reason",)),
    Metric("sqlalchemy_pool_wait_seconds", "histogram", "Waits."),
    Metric("sqlalchemy_pool_info", "info", "Which.", ("driver",)),
)


def builder(known: Kept | None = None) -> Builder:
    return Builder(METRICS, owner=("pool", "worker"), known=known)


def lines(built: Builder) -> list[str]:
    written = exposition.text(built.families()).decode()
    return [line for line in written.splitlines() if not line.startswith("#")]


def test_a_number() -> None:
    """A number becomes one sample, labelled with as many owner labels as values are given; int and bool work too."""
    built = builder()
    built.add((), [("size", 1.0)])
    built.add(("orders",), [("size", 2)])
    built.add(("orders", "003"), [("size", True)])
    assert lines(built) == [
        "sqlalchemy_pool_size 1.0",
        'sqlalchemy_pool_size{pool="orders"} 2.0',
        'sqlalchemy_pool_size{pool="orders",worker="003"} 1.0',
    ]


def test_numbers_by_label() -> None:
    """A mapping by the metric's own label becomes one sample for each label value."""
    built = builder()
    built.add(("orders",), [("closes_total", {"gc": 1.0, "error": 2.0})])
    assert lines(built) == [
        'sqlalchemy_pool_closes_total{pool="orders",reason="gc"} 1.0',
        'sqlalchemy_pool_closes_total{pool="orders",reason="error"} 2.0',
    ]


def test_a_histogram() -> None:
    """A histogram's buckets are cumulative; the +Inf bucket equals the count."""
    built = builder()
    buckets = (1.0, *(0.0 for _ in BUCKETS[1:]), 2.0)
    built.add(("orders",), [("wait_seconds", Histogram(buckets, 99.5))])
    shown = lines(built)
    assert shown[0] == 'sqlalchemy_pool_wait_seconds_bucket{le="0.0005",pool="orders"} 1.0'
    assert shown[-3:] == [
        'sqlalchemy_pool_wait_seconds_bucket{le="+Inf",pool="orders"} 3.0',
        'sqlalchemy_pool_wait_seconds_count{pool="orders"} 3.0',
        'sqlalchemy_pool_wait_seconds_sum{pool="orders"} 99.5',
    ]
    assert len(shown) == len(BUCKETS) + 3


def test_fewer_buckets() -> None:
    """Only the chosen buckets of a histogram are shown, and +Inf; the values are those that all together have."""
    few = Builder(METRICS, owner=("pool", "worker"), buckets=(0.25, 10))
    values = Histogram((1.0, *(0.0 for _ in BUCKETS[1:]), 2.0), 99.5)
    few.add(("orders",), [("wait_seconds", values)])
    assert lines(few) == [
        'sqlalchemy_pool_wait_seconds_bucket{le="0.25",pool="orders"} 1.0',
        'sqlalchemy_pool_wait_seconds_bucket{le="10.0",pool="orders"} 1.0',
        'sqlalchemy_pool_wait_seconds_bucket{le="+Inf",pool="orders"} 3.0',
        'sqlalchemy_pool_wait_seconds_count{pool="orders"} 3.0',
        'sqlalchemy_pool_wait_seconds_sum{pool="orders"} 99.5',
    ]
    again = Builder(METRICS, owner=("pool", "worker"), known=few.kept, buckets=(0.25, 10))
    again.add(("orders",), [("wait_seconds", values)])
    assert lines(again) == lines(few)


def test_an_info() -> None:
    """An info metric carries its information in labels and has the value 1."""
    built = builder()
    built.add_info(("orders",), "info", {"driver": "psycopg"})
    assert lines(built) == ['sqlalchemy_pool_info{driver="psycopg",pool="orders"} 1.0']


def test_empty_families() -> None:
    """Families come in the order of the metrics; those without samples are included unless ``with_empty=False``."""
    built = builder()
    built.add((), [("wait_seconds", Histogram((0.0,) * (len(BUCKETS) + 1), 0.0)), ("size", 1.0)])
    assert [family.name for family in built.families()] == [metric.family for metric in METRICS]
    shown = [family.name for family in built.families(with_empty=False)]
    assert shown == ["sqlalchemy_pool_size", "sqlalchemy_pool_wait_seconds"]


def test_a_family_is_its_metric() -> None:
    """A family has the name, type, help and unit of its metric."""
    found = {
        family.name: (family.type, family.documentation, family.unit)
        for family in map(builder_cy.empty, METRICS)
    }
    assert found == {
        "sqlalchemy_pool_size": ("gauge", "Size.", ""),
        "sqlalchemy_pool_closes": ("counter", "Closes.", ""),
        "sqlalchemy_pool_wait_seconds": ("histogram", "Waits.", "seconds"),
        "sqlalchemy_pool": ("info", "Which.", ""),
    }


def test_samples_are_kept() -> None:
    """Samples of the scrape before are used again while their values stay; samples no longer shown are dropped."""
    first = builder()
    values: list[tuple[str, Value]] = [("size", 1.0), ("closes_total", {"gc": 1.0})]
    for owner in (("orders",), ("billing",)):
        first.add(owner, values)
    second = builder(first.kept)
    second.add(("orders",), [("size", 1.0), ("closes_total", {"gc": 2.0})])
    (size, _), (same,) = (next(iter(built.families())).groups for built in (first, second))
    assert same is size
    assert lines(second) == [
        'sqlalchemy_pool_size{pool="orders"} 1.0',
        'sqlalchemy_pool_closes_total{pool="orders",reason="gc"} 2.0',
    ]
    assert set(second.kept.owners) == {("orders",)}


def test_what_is_derived_is_kept() -> None:
    """Samples that follow from something are not made again while that stays equal, and are when it does not."""
    made = []

    def values() -> tuple[dict[str, Value], int]:
        made.append(1)
        return {"size": float(len(made))}, len(made)

    known = None
    for source, expected in (([1.0], 1), ([1.0], 1), ([2.0], 2), ([1.0], 3)):
        built = builder(known)
        assert built.add_derived(("orders",), "limits", source, values) == expected
        assert lines(built) == [f'sqlalchemy_pool_size{{pool="orders"}} {expected}.0']
        known = built.kept


def test_infos_that_go_are_forgotten() -> None:
    """An info metric is kept as long as it is shown, however many there were."""
    known = None
    for number in range(5):
        built = builder(known)
        built.add_info((), "info", {"driver": "psycopg"})
        built.add_info((), "info", {"driver": f"driver {number}"})
        known = built.kept
        assert len(known.infos) == 2


def test_characters_that_formats_take_for_their_own() -> None:
    """The name of a pool can have any characters: percent signs, braces, quotes and line ends."""
    built = builder()
    owner = ('%s {0} 100% "x"\\\n',)
    built.add(owner, [("size", 1.0), ("closes_total", {"%d": 2.0})])
    built.add(owner, [("wait_seconds", Histogram((1.0,) * (len(BUCKETS) + 1), 0.5))])
    families_ = list(built.families())
    ours = exposition.text(families_)
    for family in families_:
        family.samples  # noqa: B018 - from now on they are written from the samples
    assert ours == exposition.text(families_)


@pytest.mark.parametrize(
    "later", [{"b": 2.0, "a": 1.0}, {"a": 1.0}, {"c": 3.0}, {}, {"a": 1.0, "b": 2.0, "c": 3.0}]
)
def test_label_values_that_change(later: dict[str, float]) -> None:
    """The label values of a metric may differ between scrapes, in number and in order."""
    first = builder()
    first.add(("orders",), [("closes_total", {"a": 1.0, "b": 2.0})])
    second, fresh = builder(first.kept), builder()
    for built in (second, fresh):
        built.add(("orders",), [("closes_total", later)])
    assert lines(second) == lines(fresh)


def test_samples_that_were_changed_are_what_is_written() -> None:
    """If a wrapping collector changes a family's samples, the changed samples are written."""
    built = builder()
    built.add(("orders",), [("size", 1.0)])
    (family,) = built.families(with_empty=False)
    family.samples[0].labels["service"] = "shop"
    assert b'sqlalchemy_pool_size{pool="orders",service="shop"} 1.0' in exposition.text([family])
    family.samples = []
    assert b"{" not in exposition.openmetrics([family])
