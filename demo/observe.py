# SPDX-License-Identifier: Apache-2.0
"""Read the metrics only by scraping them over HTTP, as Prometheus does, never from the pools themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PREFIX = "sqlalchemy_pool_"


class Snapshot:
    """One scrape.

    Samples that differ only in labels that the caller did not ask for are aggregated. So the result is the same whether
    one process exposes a pool or the sidecar exposes it once for each worker.
    """

    def __init__(self, text: str, *, at: float) -> None:
        self.at = at
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    self._samples.setdefault(sample.name.removeprefix(PREFIX), []).append(
                        (sample.labels, sample.value)
                    )

    def pools(self) -> list[str]:
        """Return the names of the pools."""
        return sorted({labels["pool"] for labels, _ in self._samples.get("info", ())})

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels; NaN if there is none."""
        values = list(self._values(name, labels))
        return math.fsum(values) if values else math.nan

    def largest(self, name: str, **labels: str) -> float:
        """Return the largest of the samples with these labels; NaN if there is none."""
        return max(self._values(name, labels), default=math.nan)

    def _values(self, name: str, wanted: Mapping[str, str]) -> Iterator[float]:
        for labels, value in self._samples.get(name, ()):
            if wanted.items() <= labels.items():
                yield value


async def scrape(client: aiohttp.ClientSession, url: str, *, at: float) -> Snapshot:
    """Scrape `url`; `at` is the time of the scrape in seconds."""
    try:
        async with client.get(url, headers={"Accept": "text/plain"}) as response:
            response.raise_for_status()
            return Snapshot(await response.text(), at=at)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise DemoError(f"cannot scrape {url}: {error or type(error).__name__}") from error


class Window:
    """The scrapes of one scene; the first is made before its first request."""

    def __init__(self, first: Snapshot) -> None:
        self.snapshots = [first]

    def add(self, snapshot: Snapshot) -> None:
        """Append a scrape."""
        self.snapshots.append(snapshot)

    def rise(self, name: str, **labels: str) -> float:
        """Return by how much a counter grew."""
        return self.snapshots[-1].total(name, **labels) - self.snapshots[0].total(name, **labels)

    def peak(self, name: str, **labels: str) -> float:
        """Return the largest value of a gauge in any scrape."""
        return max(snapshot.total(name, **labels) for snapshot in self.snapshots)

    def slower_than(self, bound: str, name: str, **labels: str) -> float:
        """Return how many observations of a histogram were above `bound`, the ``le`` of one of its buckets."""
        return self.rise(f"{name}_count", **labels) - self.rise(f"{name}_bucket", le=bound, **labels)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A number in the metrics that must exceed a threshold in a scene, or that must be 0.

    Args:
        pool: name of the pool.
        series: name of the series, without the prefix.
        wording: text with ``{}`` for the number.
        measure: computes the number from the scene's scrapes.
        above: the threshold; the scene is visible if the number exceeds it.
        absent: whether the number must be 0 instead.
    """

    pool: str
    series: str
    wording: str
    measure: Callable[[Window], float]
    above: float = 0.0
    absent: bool = False

    def holds(self, window: Window) -> bool:
        """Return whether the scene is visible in this number; NaN (a series that is not exposed) is not visible."""
        value = self.measure(window)
        return value == 0 if self.absent else value > self.above

    def reading(self, window: Window) -> str:
        """Return the number as text."""
        value = self.measure(window)
        if math.isnan(value):
            return "not exposed"
        return self.wording.format(f"{value:.0f}" if value.is_integer() else f"{value:.2f}")


def rose(pool: str, name: str, *, absent: bool = False, **labels: str) -> Evidence:
    """Return the evidence that a counter grew, or with `absent` that it did not."""

    def measure(window: Window) -> float:
        return window.rise(name, pool=pool, **labels)

    return Evidence(pool, _series(name, labels), "+{}", measure, absent=absent)


def peaked(pool: str, name: str, *, above: float = 0.0, **labels: str) -> Evidence:
    """Return the evidence that a gauge exceeded `above` in at least one scrape."""

    def measure(window: Window) -> float:
        return window.peak(name, pool=pool, **labels)

    return Evidence(pool, _series(name, labels), "up to {}", measure, above=above)


def slower_than(bound: str, pool: str, name: str) -> Evidence:
    """Return the evidence that a histogram has observations above `bound` seconds."""
    return Evidence(
        pool, name, f"+{{}} over {bound} s", lambda window: window.slower_than(bound, name, pool=pool)
    )


def _series(name: str, labels: Mapping[str, str]) -> str:
    selector = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{selector}}}" if selector else name
