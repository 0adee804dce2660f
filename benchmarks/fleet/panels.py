# SPDX-License-Identifier: Apache-2.0
"""The queries of the dashboards' panels as Grafana sends them, and how long Prometheus takes for each panel's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from tests.support import grafana

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.prometheus import Prometheus

STEPS = 240  # of a graph over an hour, with a scrape every 15 seconds
ROUNDS = 3


class Window(NamedTuple):
    """The time range of the graphs, in Unix time, and the scrape interval in seconds."""

    start: float
    end: float
    interval: float

    @property
    def step(self) -> float:
        """Return the seconds between two points: as many as an hour's graph has, however short the range is."""
        return max((self.end - self.start) / STEPS, 0.25)


class Timed(NamedTuple):
    """A panel, the seconds of its queries one after the other, the fastest of some rounds, and the samples they read.

    The samples do not depend on what else the machine does.
    """

    board: str
    title: str
    seconds: float
    samples: int


def timed(prometheus: Prometheus, board: str, window: Window, chosen: Mapping[str, str]) -> Iterator[Timed]:
    """Time every panel of a dashboard, with All but for what is chosen."""
    made = grafana.load(board)
    rate_interval, span = f"{4 * window.interval:g}s", f"{window.end - window.start:.0f}s"
    values = grafana.with_options(
        made,
        chosen,
        lambda expr: [one.labels for one in prometheus.query(expr, time=window.end)],
        rate_interval=rate_interval,
        span=span,
    )
    for panel in grafana.panels(made):
        queries = [
            (
                target.get("instant", False),
                grafana.interpolated(target["expr"], values, made, rate_interval=rate_interval, span=span),
            )
            for target in panel["targets"]
        ]
        best, samples = float("inf"), 0
        for _ in range(ROUNDS):
            began = time.perf_counter()
            samples = sum(
                _ask(prometheus, expr, window, is_instant=is_instant) for is_instant, expr in queries
            )
            best = min(best, time.perf_counter() - began)
            if best > 5:  # seconds; it is slow enough to be told
                break
        yield Timed(board, panel["title"], best, samples)


def _ask(prometheus: Prometheus, expr: str, window: Window, *, is_instant: bool) -> int:
    """Ask a query and return how many samples Prometheus read for the answer."""
    if is_instant:
        return prometheus.samples_read(expr, time=repr(window.end))
    return prometheus.samples_read(
        expr, start=repr(window.start), end=repr(window.end), step=repr(window.step)
    )
