# SPDX-License-Identifier: Apache-2.0
"""From (metric, labels, value) to metric families: the builder that every collector of this project uses.

A builder makes the families of one scrape. A collector with many series passes ``Builder.series`` of one scrape to the
builder of the next one. A series that appears again is reused, so only its value costs time. A series that does not
appear again is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from .exposition import Family, Series
from .metrics import BUCKETS
from .pausing import pause
from .segment import sites, sums
from .segment.snapshot import Histogram, Summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .audit.rules import Found
    from .metrics import Metric
    from .segment.snapshot import Counts, Snapshot, Value

# The owner of a sample, as label values: a pool, a pool and a worker, a database, or an empty tuple.
Owner = tuple[str, ...]
# The value of a metric's own label, or those of its own labels if it has several.
Label = str | tuple[str, ...]

_BOUNDS: Final = (*(repr(bound) for bound in BUCKETS), "+Inf")


@dataclass(slots=True)
class OwnerSeries:
    """The series of one owner, by the key of their metric."""

    numbers: dict[str, Series] = field(default_factory=dict)
    labelled: dict[str, dict[Label, tuple[Series, ...]]] = field(default_factory=dict)
    histograms: dict[str, tuple[Series, ...]] = field(default_factory=dict)


def empty(metric: Metric) -> Family:
    """Return the family of a metric, without samples."""
    return Family(metric.family, metric.help, metric.kind, metric.unit)


class Builder:
    """Builds the families of one scrape.

    Mutable state: the families, and the series used so far.

    Args:
        metrics: the families to build, in this order.
        owner: names of the labels of the owner; an owner may leave out the last ones.
        known: ``series`` of the builder of the last scrape.
    """

    def __init__(
        self,
        metrics: Iterable[Metric],
        *,
        owner: Sequence[str] = (),
        known: Mapping[Owner, OwnerSeries] | None = None,
    ) -> None:
        self._metrics = {metric.key: metric for metric in metrics}
        self._families = {key: empty(metric) for key, metric in self._metrics.items()}
        self._owner = owner
        self._known = known or {}
        self.series: dict[Owner, OwnerSeries] = {}

    def add(self, owner: Owner, values: Iterable[tuple[str, Value]]) -> None:
        """Add samples of one owner.

        Args:
            owner: label values, in the order of the builder's label names.
            values: pairs of the key of a metric and its value: a number, numbers by the value of the metric's own
                label (a tuple if it has several), summaries likewise, or a histogram.
        """
        pause()
        series = self.series.get(owner)
        if series is None:
            series = self.series[owner] = self._known.get(owner) or OwnerSeries()
        families, numbers = self._families, series.numbers
        for key, value in values:
            family = families[key]
            # Numbers first, because nearly all of tens of thousands of values are numbers.
            if isinstance(value, (float, int)):
                one = numbers.get(key)
                if one is None:
                    one = numbers[key] = Series.of(self._metrics[key].name, self._labels(owner))
                family.series.append(one)
                family.values.append(value)
            elif isinstance(value, Histogram):
                several = series.histograms.get(key)
                if several is None:
                    several = series.histograms[key] = tuple(self._histogram(key, owner))
                buckets = list(accumulate(value.buckets))
                family.series.extend(several)
                family.values.extend((*buckets, buckets[-1], value.sum))
            else:
                by_label = series.labelled.get(key)
                if by_label is None or by_label.keys() != value.keys():
                    by_label = series.labelled[key] = dict(self._labelled(key, owner, value))
                for label, number in value.items():
                    family.series.extend(by_label[label])
                    family.values.extend(number if isinstance(number, Summary) else (number,))

    def add_info(self, owner: Owner, key: str, labels: Mapping[str, str]) -> None:
        """Add a sample with the value 1, whose labels carry the information."""
        pause()
        family = self._families[key]
        family.series.append(Series.of(self._metrics[key].name, {**self._labels(owner), **labels}))
        family.values.append(1.0)

    def families(self, *, with_empty: bool = True) -> Iterator[Family]:
        """Yield the families; without ``with_empty`` only those that have samples."""
        for family in self._families.values():
            if with_empty or family.series:
                yield family

    def _labels(self, owner: Owner) -> dict[str, str]:
        return dict(zip(self._owner, owner, strict=False))

    def _labelled(
        self, key: str, owner: Owner, values: Iterable[Label]
    ) -> Iterator[tuple[Label, tuple[Series, ...]]]:
        metric, labels = self._metrics[key], self._labels(owner)
        for value in values:
            own = (value,) if isinstance(value, str) else value
            every = {**labels, **dict(zip(metric.labels, own, strict=True))}
            yield value, tuple(Series.of(metric.name + suffix, every) for suffix in metric.suffixes)

    def _histogram(self, key: str, owner: Owner) -> Iterator[Series]:
        name, labels = self._metrics[key].name, self._labels(owner)
        for bound in _BOUNDS:
            yield Series.of(f"{name}_bucket", {**labels, "le": bound})
        yield Series.of(f"{name}_count", labels)
        yield Series.of(f"{name}_sum", labels)


def add_capacity(scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot]) -> None:
    """Add what is always summed: the number of connections that all pools of a name together can open."""
    capacity = sums.capacity(snapshots)
    if not math.isnan(capacity):
        scrape.add(owner, [("capacity", capacity)])


def add_state(
    scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot], *, now: float, wall: float
) -> None:
    """Add the limits and the state of live pools of one name."""
    scrape.add(owner, [("instances", float(len(sums.current(snapshots))))])
    scrape.add(owner, sums.state(snapshots, now=now, wall=wall).items())
    scrape.add(owner, sites.state(snapshots, now=now).items())


def add_findings(
    scrape: Builder, findings: Iterable[Found], owners: Mapping[str, Owner] | None = None
) -> None:
    """Add what the audit found.

    Args:
        scrape: the builder.
        findings: of the audit.
        owners: label values by the label of the pool, where these are more than that.
    """
    by_pool: dict[str, dict[str, float]] = {}
    for found in findings:
        by_pool.setdefault(found.pool, {})[found.rule.name] = 1.0
    for pool, rules in by_pool.items():
        scrape.add((pool,) if owners is None else owners[pool], [("finding", rules)])


def add_sites(scrape: Builder, owner: Owner, by_site: Mapping[str, Counts]) -> None:
    """Add the counters of the sites of the pools of one name."""
    scrape.add(owner, sites.counters(by_site).items())
