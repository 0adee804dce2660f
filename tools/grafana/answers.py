# SPDX-License-Identifier: Apache-2.0
"""What a Prometheus answers to all queries of a dashboard, in the form that the page takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support import grafana
from tests.support.board_run import INTERVAL, RATE_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.grafana import Board, Target
    from tests.support.prometheus import Prometheus

Chosen = dict[str, str | list[str]]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How dashboards are asked: of whom, for which time, and with which variables chosen.

    Args:
        prometheus: that answers.
        start: of the time range, in Unix time.
        end: of the time range, in Unix time.
        chosen: values of the variables that are not at All.
        step: seconds between two points.
        rate_interval: Grafana's ``$__rate_interval``.
    """

    prometheus: Prometheus
    start: float
    end: float
    chosen: Chosen = field(default_factory=dict)
    step: float = INTERVAL
    rate_interval: str = RATE_INTERVAL

    def answers(self, board: Board) -> Json:
        """Return the answers to the queries of all panels."""
        values = self._with_options(board)
        panels: dict[str, Json] = {}
        for target in grafana.targets(board):
            panels.setdefault(str(target.panel["id"]), {})[target.ref] = self._answer(board, target, values)
        return {
            "start": self.start,
            "end": self.end,
            "step": self.step,
            "panels": panels,
            "marks": self._marks(board, values),
            "chosen": _shown(board, self.chosen),
        }

    def _answer(self, board: Board, target: Target, values: Chosen) -> Json:
        expr = self._meant(board, target.expr, values)
        if target.is_instant:
            found = self.prometheus.query(expr, time=self.end)
            return {
                "type": "vector",
                "series": [_series(one.labels, [(self.end, one.value)]) for one in found],
            }
        series = self.prometheus.query_range(expr, self.start, self.end, self.step)
        return {"type": "matrix", "series": [_series(one.labels, one.points) for one in series]}

    def _marks(self, board: Board, values: Chosen) -> list[float]:
        """Return when alerts began to fire."""
        return [
            one.points[0][0]
            for annotation in board["annotations"]["list"]
            for one in self.prometheus.query_range(
                self._meant(board, annotation["expr"], values), self.start, self.end, self.step
            )
        ]

    def _meant(self, board: Board, expr: str, values: Chosen) -> str:
        return grafana.interpolated(
            expr,
            values,
            board,
            rate_interval=self.rate_interval,
            span=self._span,
        )

    def _with_options(self, board: Board) -> Chosen:
        return grafana.with_options(
            board,
            self.chosen,
            lambda expr: [one.labels for one in self.prometheus.query(expr, time=self.end)],
            rate_interval=self.rate_interval,
            span=self._span,
        )

    @property
    def _span(self) -> str:
        return f"{self.end - self.start:.0f}s"


def _series(labels: Mapping[str, str], points: list[tuple[float, float]]) -> Json:
    return {"labels": dict(labels), "points": [(when, _text(value)) for when, value in points]}


def _text(value: float) -> str:
    """Return a number as Prometheus writes it, since JSON has neither NaN nor infinity."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def _shown(board: Board, chosen: Chosen) -> dict[str, str]:
    shown = {}
    for one in grafana.variables(board):
        if grafana.is_hidden(one):
            continue
        value = chosen.get(one["name"], "All")
        shown[one.get("label") or one["name"]] = value if isinstance(value, str) else " + ".join(value)
    return shown
