# SPDX-License-Identifier: Apache-2.0
"""A histogram of durations, and values drawn from it."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The share of the way from all lower to all upper bounds at which the mean lies: at the ends the law has no shape.
_LEAST_SHARE, _MOST_SHARE = 0.02, 0.98


@dataclass(frozen=True)
class Histogram:
    """Durations by bucket. Not slotted, for ``cached_property``.

    Within a bucket a value is taken for ``low + width * u**shape``, ``u`` even between 0 and 1. The shape is the same
    in all buckets, and such that the mean is the recorded one, which is exact.

    Args:
        bounds: the upper bound of each bucket in seconds; that of the last one is infinite.
        counts: how many values each bucket has.
        total: the sum of all values in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @cached_property
    def number(self) -> float:
        """How many values there are."""
        return math.fsum(self.counts)

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 without values."""
        return self.total / self.number if self.number else 0.0

    @cached_property
    def spread(self) -> float:
        """The coefficient of variation: standard deviation / mean; 1 for exponential durations, 0 for equal ones."""
        if not self.mean:
            return 0.0
        first, second = 1.0 / (1.0 + self._shape), 1.0 / (1.0 + 2.0 * self._shape)
        square = math.fsum(
            count * (low * low + 2.0 * low * width * first + width * width * second)
            for count, low, width in self._buckets
        )
        return math.sqrt(max(0.0, square / self.number - self.mean**2)) / self.mean

    def quantile(self, share: float) -> float:
        """Return the duration that this share of the values does not exceed, in seconds; 0 without values."""
        return self._at(share * self.number) if self.number else 0.0

    def bucket(self, share: float) -> tuple[float, float]:
        """Return the bounds of the bucket that a quantile is in: it is known to lie between them."""
        at = self._index(share * self.number)
        return self.bounds[at - 1] if at else 0.0, self.bounds[at]

    def at(self, shares: Iterable[float]) -> list[float]:
        """Return the duration at each of these shares."""
        return [self._at(share * self.number) for share in shares]

    @cached_property
    def _sums(self) -> list[float]:
        return list(accumulate(self.counts))

    def _index(self, rank: float) -> int:
        at = min(bisect_left(self._sums, rank), len(self.counts) - 1)
        # Past the end by a rounding, or before the first that has any.
        while not self.counts[at] and at:
            at -= 1
        return at

    def _at(self, rank: float) -> float:
        at = self._index(rank)
        count, low, width = self._buckets[at]
        within = (rank - (self._sums[at] - count)) / count if count else 0.0
        return low + width * float(min(max(within, 0.0), 1.0) ** self._shape)

    @cached_property
    def _buckets(self) -> list[tuple[float, float, float]]:
        """The count, the lower bound and the width of each."""
        lows = (0.0, *self.bounds[:-1])
        pairs = list(zip(self.counts, lows, self.bounds, strict=True))
        buckets = [(count, low, high - low) for count, low, high in pairs[:-1]]
        return [*buckets, (self.counts[-1], lows[-1], self._last_width(buckets, lows[-1]))]

    def _last_width(self, others: list[tuple[float, float, float]], low: float) -> float:
        """Return how far the last bucket reaches: as far again as its bound is, or further if the mean says so."""
        if not self.counts[-1]:
            return low
        middle = math.fsum(count * (at + width / 2.0) for count, at, width in others)
        return max(low, 2.0 * ((self.total - middle) / self.counts[-1] - low))

    @cached_property
    def _shape(self) -> float:
        widths = math.fsum(count * width for count, _, width in self._buckets)
        if not widths:
            return 1.0
        share = (self.total - math.fsum(count * low for count, low, _ in self._buckets)) / widths
        return 1.0 / min(max(share, _LEAST_SHARE), _MOST_SHARE) - 1.0


def of_cumulative(buckets: dict[float, float], total: float) -> Histogram:
    """Return a histogram from cumulative counts by upper bound, as Prometheus has them."""
    bounds = sorted(buckets)
    return Histogram(tuple(bounds) or (math.inf,), tuple(_steps(bounds, buckets)) or (0.0,), total)


def _steps(bounds: list[float], buckets: dict[float, float]) -> Iterator[float]:
    before = 0.0
    for bound in bounds:
        # The increases that Prometheus extrapolates may differ from each other by a rounding.
        yield max(0.0, buckets[bound] - before)
        before = max(before, buckets[bound])


EMPTY: Final = of_cumulative({}, 0.0)
