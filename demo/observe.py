# SPDX-License-Identifier: Apache-2.0
"""Read the metrics and the board only over HTTP, as Prometheus and a browser do, never from the pools themselves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PREFIX = "sqlalchemy_pool_"
METRICS, BOARD = "/metrics", "/api/v1/pools"


class Snapshot:
    """One scrape.

    Samples that differ only in labels that the caller did not ask for are aggregated. So the result is the same whether
    one process exposes a pool or the sidecar exposes it once for each worker.
    """

    def __init__(self, text: str, *, at: float, held: Sequence[Mapping[str, Any]] = ()) -> None:
        self.at = at
        self.held = held  # the connections that are checked out, as the board has them
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
    """Scrape the endpoint at `url`, and read its board; `at` is the time of that in seconds."""
    text = await _get(client, url + METRICS)
    board = json.loads(await _get(client, url + BOARD))
    return Snapshot(text, at=at, held=board["held"])


async def _get(client: aiohttp.ClientSession, url: str) -> str:
    try:
        async with client.get(url, headers={"Accept": "text/plain"}) as response:
            response.raise_for_status()
            return await response.text()
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


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who must be named on the board in a scene.

    Args:
        pool: name of the pool whose connections are held.
        function: name of the function that holds them.
        state: what the database server must say of the connection.
    """

    pool: str
    function: str
    state: str

    def holds(self, window: Window) -> bool:
        """Return whether it was named."""
        return self._found(window) is not None

    def reading(self, window: Window) -> str:
        """Return one line: what is held by which place, task or thread and process, and what the server does."""
        found = self._found(window)
        if found is None:
            return f"{self.pool}: {self.function}() was not named"
        site, holder, pid = found["site"], found["holder"] or "unknown", found["pid"]
        state, seconds = found["server"]["state"].replace("_", " "), found["server"]["state_seconds"]
        return (
            f"{self.pool}: held for {found['held_seconds']:.1f} s by {site} ({holder}) in process {pid}, "
            f"{state} in the server for {seconds or 0.0:.1f} s"
        )

    def _found(self, window: Window) -> Mapping[str, Any] | None:
        """Return what was held for longest in any scrape."""
        found = [
            one
            for snapshot in window.snapshots
            for one in snapshot.held
            if one["pool"] == self.pool
            and one["site"].partition(":")[2].partition(":")[0].rpartition(".")[2] == self.function
            and one["server"] is not None
            and one["server"]["state"] == self.state
        ]
        return max(found, key=lambda one: one["held_seconds"], default=None)


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
