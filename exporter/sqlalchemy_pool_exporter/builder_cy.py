# SPDX-License-Identifier: Apache-2.0
"""The builder of metric families, from (metric, labels, value), that every collector of this project uses.

A builder makes the families of one scrape. A collector with many series passes ``Builder.kept`` of one scrape to the
builder of the next one. Samples that appear again with the same values are added again, with their text; of others the
series are. What does not appear again is dropped.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import math
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from .exposition import Family
from .metrics import BUCKETS
from .pausing import pause
from .segment.exemplars import merged
from .segment.snapshot import Histogram, Summary

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import array_of
    from cython.cimports.sqlalchemy_pool_exporter.series_cy import Samples, Series
else:
    from .series_cy import Samples, Series
from .series_cy import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from .metrics import Metric
    from .segment.exemplars import Exemplar
    from .segment.snapshot import Value
    from .series_cy import Label

_T = TypeVar("_T")

# The owner of a sample, as label values: a pool, a pool and a worker, a database, or an empty tuple.
Owner = tuple[str, ...]
# A metric, and the values of its label.
Labelled = tuple[str, tuple[str, ...]]


class OwnerSamples:
    """The samples of one owner, by the key of their metric."""

    __slots__ = ("derived", "histograms", "labelled", "labels", "numbers", "row", "row_samples")

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.numbers: dict[str, Samples] = {}
        self.labelled: dict[str, Samples] = {}
        self.histograms: dict[str, Samples] = {}
        # The numbers of ``Builder.add_numbers()``, and their samples.
        self.row: array[float] | None = None
        self.row_samples: list[Samples | None] = []
        # By name, what samples were derived from, the samples, and what came with them; see ``Builder.add_derived()``.
        self.derived: dict[str, tuple[object, list[tuple[str, Samples]], Any]] = {}


class Kept:
    """What a builder keeps for the next scrape."""

    __slots__ = ("infos", "owners")

    def __init__(self) -> None:
        self.owners: dict[Owner, OwnerSamples] = {}
        self.infos: dict[object, Samples] = {}  # by metric, owner and labels


_NOTHING = Kept()
_NO_LABELS: tuple[Label, ...] | None = None
_NO_VALUES: tuple[float, ...] = ()


def empty(metric: Metric) -> Family:
    """Return the family of a metric, without samples."""
    return Family(metric.family, metric.help, metric.kind, metric.unit)


class Builder:
    """Builds the families of one scrape.

    Mutable state: the families, and the samples so far.

    Args:
        metrics: the families to build, in this order.
        owner: names of the labels of the owner; an owner may leave out the last ones.
        known: ``kept`` of the builder of the last scrape.
        buckets: upper bounds of the histograms' buckets that are shown; the last one, +Inf, is always.
    """

    __slots__ = (
        "_bounds",
        "_columns",
        "_families",
        "_groups",
        "_known",
        "_metrics",
        "_owner",
        "_shown",
        "kept",
    )

    def __init__(
        self,
        metrics: Iterable[Metric],
        *,
        owner: Sequence[str] = (),
        known: Kept | None = None,
        buckets: Collection[float] = BUCKETS,
    ) -> None:
        self._metrics = {metric.key: metric for metric in metrics}
        self._families = {key: empty(metric) for key, metric in self._metrics.items()}
        self._groups = {key: family.groups for key, family in self._families.items()}
        self._owner = owner
        self._known = known or _NOTHING
        self._shown: list[int] | None = None  # positions of the buckets, and their bounds
        self._bounds = _NO_LABELS
        if len(buckets) < len(BUCKETS):
            self._shown = [*(at for at, bound in enumerate(BUCKETS) if bound in buckets), len(BUCKETS)]
            self._bounds = tuple([BOUNDS[at] for at in self._shown])
        self._columns: list[list[Samples]] | None = None  # of the metrics that add_numbers() adds to
        self.kept = Kept()

    def add(self, owner: Owner, values: Iterable[tuple[str, Value]]) -> None:
        """Add samples of one owner.

        Args:
            owner: label values, in the order of the builder's label names.
            values: pairs of the key of a metric and its value: a number, numbers by the value of the metric's own
                label (a tuple if it has several), summaries likewise, or a histogram.
        """
        pause()
        self._add(self._of(owner), values)

    def _add(self, known: OwnerSamples, values: Iterable[tuple[str, Value]]) -> None:
        groups, numbers = self._groups, known.numbers
        samples: Samples | None
        key: str
        for key, value in values:
            # Numbers first, because nearly all of tens of thousands of values are numbers.
            if type(value) is float:
                samples = numbers.get(key)
                if samples is None or samples.first != value:
                    series = Series(self._metrics[key], known.labels) if samples is None else samples.series
                    samples = numbers[key] = Samples(series, (value,))
            else:
                samples = self._other(known, key, value)
            groups[key].append(samples)

    def add_numbers(
        self,
        owner: Owner,
        keys: tuple[str, ...],
        numbers: array[float],
        labelled: Labelled,
    ) -> None:
        """Add many numbers of one owner; those that are NaN are left out.

        Args:
            owner: as of ``add()``.
            keys: of the metric of each number; the same object at each call.
            numbers: never changed.
            labelled: the metric of the last numbers, and the values of its label for which they are.
        """
        pause()
        at: cython.Py_ssize_t
        number: cython.double
        samples: Samples | None
        together: Samples | None
        column: list[Samples]
        known: OwnerSamples = self._of(owner)
        last_key, own = labelled
        length: cython.Py_ssize_t = len(keys)
        singles: cython.Py_ssize_t = length - len(own)
        if self._columns is None:
            self._columns = [self._groups[key] for key in keys[:singles]]
        columns: list[list[Samples]] = self._columns
        if known.row is None:
            known.row, known.row_samples = array("d", [math.nan] * length), [None] * singles
        kept: list[Samples | None] = known.row_samples
        if cython.compiled:
            now: cython.p_double = array_of(numbers)
            before: cython.p_double = array_of(known.row)
        else:
            now, before = numbers, known.row  # type: ignore[assignment]  # pointers, where this is compiled
        for at in range(singles):
            number = now[at]
            if number != number:  # noqa: PLR0124 - NaN
                continue
            samples = kept[at]
            if samples is None or number != before[at]:
                series = Series(self._metrics[keys[at]], known.labels) if samples is None else samples.series
                samples = kept[at] = Samples(series, (number,))
            column = columns[at]
            column.append(samples)
        together = known.labelled.get(last_key)
        if together is None:
            series = Series(self._metrics[last_key], known.labels, own)
            together = known.labelled[last_key] = Samples(series, tuple(numbers[singles:]))
        else:
            for at in range(singles, length):
                if now[at] != before[at]:
                    together = known.labelled[last_key] = Samples(together.series, tuple(numbers[singles:]))
                    break
        column = self._groups[last_key]
        column.append(together)
        known.row = numbers

    def add_derived(
        self, owner: Owner, name: str, source: object, make: Callable[[], tuple[Mapping[str, Value], _T]]
    ) -> _T:
        """Add samples of one owner again, as long as what they are derived from stays equal.

        Args:
            owner: as of ``add()``.
            name: of these samples, among all of the owner.
            source: what they are derived from; never changed.
            make: returns the values by the key of the metric, and anything else, if the source has changed.

        Returns:
            What ``make`` returned beside the values.
        """
        known: OwnerSamples = self._of(owner)
        groups = self._groups
        before = known.derived.get(name)
        if before is not None and before[0] == source:
            for key, samples in before[1]:
                groups[key].append(samples)
            again: _T = before[2]
            return again
        pause()
        values, result = make()
        self._add(known, values.items())
        known.derived[name] = (source, [(key, groups[key][-1]) for key in values], result)
        return result

    def add_info(self, owner: Owner, key: str, labels: Mapping[str, str]) -> None:
        """Add a sample with the value 1, whose labels carry the information."""
        pause()
        which = (key, owner, tuple(labels.items()))
        samples: Samples | None = self._known.infos.get(which)
        if samples is None:
            samples = Samples(Series(self._metrics[key], {**self._of(owner).labels, **labels}), (1.0,))
        self.kept.infos[which] = samples
        self._groups[key].append(samples)

    def families(self, *, with_empty: bool = True) -> Iterator[Family]:
        """Yield the families; without ``with_empty`` only those that have samples."""
        for family in self._families.values():
            if with_empty or family.groups:
                yield family

    def _of(self, owner: Owner) -> OwnerSamples:
        owners = self.kept.owners
        known: OwnerSamples | None = owners.get(owner)
        if known is None:
            known = self._known.owners.get(owner) or OwnerSamples(dict(zip(self._owner, owner, strict=False)))
            owners[owner] = known
        return known

    def _other(self, known: OwnerSamples, key: str, value: Value) -> Samples:
        """Return the samples of a value that is no float; those of the last scrape, if they are the same."""
        samples: Samples | None
        kind, own, values = known.numbers, _NO_LABELS, _NO_VALUES
        exemplars: tuple[Exemplar | None, ...] = ()
        if isinstance(value, (float, int)):
            values = (float(value),)
        elif isinstance(value, Histogram):
            buckets = tuple(accumulate(value.buckets))
            shown = buckets if self._shown is None else [buckets[at] for at in self._shown]
            kind, own, values = known.histograms, self._bounds, (*shown, buckets[-1], value.sum)
            if value.exemplars:
                exemplars = value.exemplars if self._shown is None else merged(value.exemplars, self._shown)
        else:
            kind, own, values = known.labelled, tuple(value), _flat(value.values())
        samples = kind.get(key)
        if samples is None or samples.series.own != own:
            samples = kind[key] = Samples(Series(self._metrics[key], known.labels, own), values, exemplars)
        elif samples.values != values or samples.exemplars != exemplars:
            samples = kind[key] = Samples(samples.series, values, exemplars)
        return samples


def _flat(values: Iterable[float | Summary]) -> tuple[float, ...]:
    found: list[float] = []
    for value in values:
        found.extend(value if isinstance(value, Summary) else (value,))
    return tuple(found)
