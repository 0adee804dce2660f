# SPDX-License-Identifier: Apache-2.0
"""Rates of each pool, from what the endpoint read some seconds ago."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.segment.snapshot import counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_pool_exporter.segment.snapshot import Counts

    from .schema import Counters, Rates

# A rate is over at least so many seconds, if the endpoint was read that long ago, and over at most twice as many.
LEAST_SECONDS: Final = 5.0
# What was read before that says nothing of now.
MOST_SECONDS: Final = 90.0


class _Sample(NamedTuple):
    at: float  # seconds of time.monotonic()
    counts: Mapping[str, Counts]


class RateKeeper:
    """Remembers two older reads. Not thread-safe.

    Mutable state: the two, the older one first. The newer one replaces the older one once it is old enough to compute
    rates from.
    """

    def __init__(self) -> None:
        self._samples: list[_Sample] = []

    def add(self, counts: Mapping[str, Counts], now: float) -> dict[str, Rates]:
        """Return the rates by label, of those that were there before and whose counts did not shrink.

        Args:
            counts: of each label.
            now: seconds of ``time.monotonic()``.
        """
        samples = [one for one in self._samples if now - one.at <= MOST_SECONDS]
        rates = dict(_rates(samples[0], counts, now)) if samples and now > samples[0].at else {}
        if not samples or now - samples[-1].at >= LEAST_SECONDS:
            # An array takes a quarter of a list.
            kept = {label: array("d", row) for label, row in counts.items()}
            samples = [*samples[-1:], _Sample(now, kept)]
        self._samples = samples
        return rates


def _rates(before: _Sample, counts: Mapping[str, Counts], now: float) -> Iterable[tuple[str, Rates]]:
    seconds = now - before.at
    for label, after in counts.items():
        earlier = before.counts.get(label)
        # They shrink if the files of processes were deleted by hand, or a name came back after its retention.
        if earlier is not None and all(one >= other for one, other in zip(after, earlier, strict=True)):
            grown = counters_of([one - other for one, other in zip(after, earlier, strict=True)])
            yield (
                label,
                {
                    "over_seconds": seconds,
                    "checkouts": grown["checkouts"] / seconds,
                    "checkout_timeouts": grown["checkout_timeouts"] / seconds,
                    "checkout_errors": sum(grown["checkout_errors"].values()) / seconds,
                    "connects": grown["connects"] / seconds,
                    "connect_errors": grown["connect_errors"] / seconds,
                    "closes": sum(grown["closes"].values()) / seconds,
                    "closes_by_reason": {kind: one / seconds for kind, one in grown["closes"].items()},
                    "errors": {layer: one / seconds for layer, one in grown["errors"].items()},
                    "leaked_checkouts": grown["leaked_checkouts"] / seconds,
                    "undisposed": sum(grown["undisposed"].values()) / seconds,
                    "mean_wait_seconds": _mean(grown["wait_seconds"], grown["waits"]),
                    "mean_hold_seconds": _mean(grown["hold_seconds"], grown["holds"]),
                },
            )


def _mean(seconds: float, number: float) -> float | None:
    return seconds / number if number > 0.0 else None


def _by_layer(errors: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    by_layer: dict[str, float] = {}
    for (layer, *_), number in errors.items():
        by_layer[layer] = by_layer.get(layer, 0.0) + number
    return by_layer


def counters_of(counts: Counts, nested: float = 0.0) -> Counters:
    """Return the counters of a pool.

    Args:
        counts: the fields from ``FIRST_COUNTER`` on.
        nested: its nested checkouts, which are counted by site.
    """
    values: dict[str, Any] = dict(counters(counts, has_overflow=True))
    wait, hold = values["checkout_wait_seconds"], values["hold_seconds"]
    return {
        "checkouts": values["checkouts_total"],
        "checkins": values["checkins_total"],
        "checkout_timeouts": values["checkout_timeouts_total"],
        "checkout_errors": values["checkout_errors_total"],
        "waits": wait.count,
        "wait_seconds": wait.sum,
        "holds": hold.count,
        "hold_seconds": hold.sum,
        "connects": values["connects_total"],
        "connect_errors": values["connect_errors_total"],
        "closes": values["closes_total"],
        "errors": _by_layer(values["errors_total"]),
        "overflow_opened": values["overflow_opened_total"],
        "nested_checkouts": nested,
        "leaked_checkouts": values["leaked_checkouts_total"],
        "undisposed": values["undisposed_total"],
    }
