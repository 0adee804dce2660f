# SPDX-License-Identifier: Apache-2.0
"""From (metric, labels, value) to metric families: what every collector of this project builds its scrape with.

A builder makes the families of one scrape. A collector with many series hands ``Builder.series`` of one scrape to the
builder of the next: a series that is shown again then costs nothing but its number, and one that is not is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from .exposition import Family, Series
from .metrics import BUCKETS
from .segment.snapshot import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .metrics import Metric
    from .segment.snapshot import Value

# Values of the labels that say whose a sample is: a pool, a pool and a worker, a database, or no labels at all.
Owner = tuple[str, ...]

_BOUNDS: Final = (*(repr(bound) for bound in BUCKETS), "+Inf")


@dataclass(slots=True)
class OwnerSeries:
    """The series of one owner, by the key of their metric."""

    numbers: dict[str, Series] = field(default_factory=dict)
    labelled: dict[str, dict[str, Series]] = field(default_factory=dict)
    histograms: dict[str, tuple[Series, ...]] = field(default_factory=dict)


def empty(metric: Metric) -> Family:
    """Return the family of a metric, without samples."""
    return Family(metric.family, metric.help, metric.kind, metric.unit)


class Builder:
    """Builds the families of one scrape.

    Mutable state: the families, and the series used so far.

    Args:
        metrics: the families to build, in this order.
        owner: names of the labels that say whose a sample is; an owner may leave out the last of them.
        known: ``series`` of the builder of the scrape before.
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
        """Add what is known of one owner.

        Args:
            owner: label values, in the order of the names the builder was given.
            values: keys of metrics, each with a number, with numbers by the value of the metric's own label, or with
                a histogram.
        """
        series = self.series.get(owner)
        if series is None:
            series = self.series[owner] = self._known.get(owner) or OwnerSeries()
        families, numbers = self._families, series.numbers
        for key, value in values:
            family = families[key]
            # A number first: of tens of thousands of values nearly all are.
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
                family.series.extend(map(by_label.__getitem__, value))
                family.values.extend(value.values())

    def add_info(self, owner: Owner, key: str, labels: Mapping[str, str]) -> None:
        """Add a sample whose labels are what it says; its value is 1."""
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

    def _labelled(self, key: str, owner: Owner, values: Iterable[str]) -> Iterator[tuple[str, Series]]:
        metric, labels = self._metrics[key], self._labels(owner)
        (name,) = metric.labels
        for value in values:
            yield value, Series.of(metric.name, {**labels, name: value})

    def _histogram(self, key: str, owner: Owner) -> Iterator[Series]:
        name, labels = self._metrics[key].name, self._labels(owner)
        for bound in _BOUNDS:
            yield Series.of(f"{name}_bucket", {**labels, "le": bound})
        yield Series.of(f"{name}_count", labels)
        yield Series.of(f"{name}_sum", labels)
