# SPDX-License-Identifier: Apache-2.0
"""The queries of the dashboards' panels as Grafana sends them, and how long Prometheus takes for each panel's."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support import grafana

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.prometheus import Prometheus

STEPS = 240  # of a graph over an hour, with a scrape every 15 seconds
ROUNDS = 5


class Window(NamedTuple):
    """The time range of the graphs, in Unix time, and the scrape interval in seconds."""

    start: float
    end: float
    interval: float

    def step(self, panel: Panel) -> float:
        """Return the seconds between two points: as many as an hour's graph has, however short the range is."""
        return max((self.end - self.start) / min(STEPS, 3600 / panel.min_interval), 0.25)


class Panel(NamedTuple):
    """A panel of a dashboard, with its queries for what is chosen: whether each is instant, and the expression.

    ``min_interval`` has the seconds that two points are apart at least.
    """

    title: str
    min_interval: float
    queries: tuple[tuple[bool, str], ...]


class Timed(NamedTuple):
    """The seconds that a panel's queries take one after the other, in each round, and the samples that they read.

    The samples do not depend on what else the machine does.
    """

    title: str
    rounds: tuple[float, ...]
    samples: int

    @property
    def seconds(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rounds)


def chosen_panels(
    prometheus: Prometheus, board: str, window: Window, chosen: Mapping[str, str]
) -> list[Panel]:
    """Return every panel of a dashboard, with All but for what is chosen."""
    made = grafana.load(board)
    rate_interval, span = f"{4 * window.interval:g}s", f"{window.end - window.start:.0f}s"
    values = grafana.with_options(
        made,
        chosen,
        lambda expr: [one.labels for one in prometheus.query(expr, time=window.end)],
        rate_interval=rate_interval,
        span=span,
    )

    def query(target: Mapping[str, Any]) -> tuple[bool, str]:
        expr = grafana.interpolated(target["expr"], values, made, rate_interval=rate_interval, span=span)
        return target.get("instant", False), expr

    return [
        Panel(
            panel["title"],
            float(panel.get("interval", "15s").removesuffix("s")),
            tuple(map(query, panel["targets"])),
        )
        for panel in grafana.panels(made)
    ]


def timed(prometheus: Prometheus, boards: Sequence[Sequence[Panel]], window: Window) -> list[list[Timed]]:
    """Time every panel of some dashboards.

    All of them are asked in each round, so that the rounds of a panel are far apart: Prometheus evaluates its rules
    meanwhile, for a part of each minute.
    """
    rounds = [
        [[_time(prometheus, panel, window) for panel in panels] for panels in boards] for _ in range(ROUNDS)
    ]
    return [
        [
            Timed(panel.title, tuple(seconds for seconds, _ in of_panel), of_panel[0][1])
            for panel, *of_panel in zip(panels, *of_board, strict=True)
        ]
        for panels, *of_board in zip(boards, *rounds, strict=True)
    ]


def _time(prometheus: Prometheus, panel: Panel, window: Window) -> tuple[float, int]:
    """Ask a panel's queries; return how long they take, and how many samples they read."""
    began = time.perf_counter()
    samples = 0
    for is_instant, expr in panel.queries:
        if is_instant:
            samples += prometheus.samples_read(expr, time=repr(window.end))
        else:
            samples += prometheus.samples_read(
                expr, start=repr(window.start), end=repr(window.end), step=repr(window.step(panel))
            )
    return time.perf_counter() - began, samples
