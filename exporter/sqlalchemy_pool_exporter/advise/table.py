# SPDX-License-Identifier: Apache-2.0
"""Samples of metrics by name, wherever they were read: state now, and what the counters grew by meanwhile."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

_STARTED: Final = "process_start_time_seconds"  # prometheus_client's
_GROWING: Final = ("_total", "_bucket", "_count", "_sum")


_SHARE: Final = "Let them share a directory, and try again"


class Sample(NamedTuple):
    """One value with its labels."""

    labels: Mapping[str, str]
    value: float


class Table(dict[str, list[Sample]]):
    """Samples by the name of their metric, without this project's prefix."""

    def sum_by(self, name: str, label: str, **equal: str) -> dict[str, float]:
        """Return the sums of a metric by the value of a label, of the samples whose other labels equal these."""
        sums: defaultdict[str, list[float]] = defaultdict(list)
        for sample in self.samples(name, **equal):
            if label in sample.labels:
                sums[sample.labels[label]].append(sample.value)
        return {value: math.fsum(values) for value, values in sums.items()}

    def total(self, name: str, **equal: str) -> float | None:
        """Return the sum of a metric, of the samples whose labels equal these; None if there are none."""
        values = [sample.value for sample in self.samples(name, **equal)]
        return math.fsum(values) if values else None

    def least(self, name: str, **equal: str) -> float | None:
        """Return the smallest value of a metric; None if there is none."""
        return min((sample.value for sample in self.samples(name, **equal)), default=None)

    def most(self, name: str, **equal: str) -> float | None:
        """Return the largest value of a metric; None if there is none."""
        return max((sample.value for sample in self.samples(name, **equal)), default=None)

    def samples(self, name: str, **equal: str) -> Iterator[Sample]:
        """Yield the samples of a metric whose labels equal these."""
        for sample in self.get(name, ()):
            if all(sample.labels.get(label) == value for label, value in equal.items()):
                yield sample


def table_of(families: Iterable[Metric]) -> Table:
    """Return the samples of this project's metrics in the families of a scrape, and when its process was started.

    NaN and infinity say nothing.
    """
    table = Table()
    for family in families:
        for name, labels, value, *_ in family.samples:
            if (name.startswith(PREFIX) or name == _STARTED) and math.isfinite(value):
                table.setdefault(name.removeprefix(PREFIX), []).append(Sample(labels, value))
    return table


def growth(before: Table, after: Table, where: str) -> Table:
    """Return by how much each counter grew. A series that is new counts from 0.

    Raises:
        BoardError: the two reads do not tell of the same processes; one counter has become smaller, or another process
            answered that has only its own.
    """
    # All workers that share a directory have the same counters.
    if "exporter_workers" not in after and before and before.most(_STARTED) != after.most(_STARTED):
        raise BoardError(f"{where}: two reads were answered by two processes. {_SHARE}")
    grown = Table()
    for name, samples in after.items():
        if not name.endswith(_GROWING):
            continue
        known = {frozenset(sample.labels.items()): sample.value for sample in before.get(name, ())}
        for labels, value in samples:
            more = value - known.get(frozenset(labels.items()), 0.0)
            if more < 0.0:
                raise BoardError(
                    f"{where}: {PREFIX}{name} went back between two reads: the process was started again, or "
                    f"several answer in turn. {_SHARE}"
                )
            grown.setdefault(name, []).append(Sample(labels, more))
    return grown
