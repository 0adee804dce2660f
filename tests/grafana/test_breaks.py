# SPDX-License-Identifier: Apache-2.0
"""Each check can fail: a dashboard without faults has one after each of these changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.grafana.small_board import NAME, small
from tools.grafana.checks import faults
from tools.grafana.schema import AGES, mistyped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.grafana import Board
    from tools.grafana.answers import Json
    from tools.grafana.page import Grafana
    from tools.grafana.stage import Stage

    Break = Callable[[Board], Any]

pytestmark = [
    pytest.mark.grafana,
    pytest.mark.newest,
    pytest.mark.requires("npm", "node", "chromium", "prometheus"),
]

STAT, GRAPH, TABLE, HEATMAP = range(4)


def _in(panel: int, *path: str | int, **changes: Any) -> Break:
    """Change what a panel has at a path."""

    def change(board: Board) -> None:
        at = board["panels"][panel]
        for step in path:
            at = at[step]
        at.update(changes)

    return change


def _override(panel: int, matcher: str, options: object, name: str, value: object) -> Break:
    """Add an override to a panel."""
    override = {"matcher": {"id": matcher, "options": options}, "properties": [{"id": name, "value": value}]}
    return lambda board: board["panels"][panel]["fieldConfig"]["overrides"].append(override)


def _link(url: str) -> Break:
    """Let the links of the table lead elsewhere."""
    return _in(TABLE, "fieldConfig", "overrides", 1, "properties", 0, value=[{"title": "x", "url": url}])


def _zeros(board: Board) -> None:
    """Let all values of the graph be 0."""
    target = board["panels"][GRAPH]["targets"][0]
    target["expr"] = f"0 * {target['expr']}"


def _zeros_without_an_end(board: Board) -> None:
    """Take the end of the axis away, too."""
    _zeros(board)
    del board["panels"][GRAPH]["fieldConfig"]["defaults"]["custom"]["axisSoftMax"]


def _steps(*steps: tuple[float | None, str]) -> Break:
    """Set the thresholds of the stat."""
    levels = [{"value": value, "color": color} for value, color in steps]
    return _in(STAT, "fieldConfig", "defaults", "thresholds", steps=levels)


MISTYPED: dict[str, Break] = {
    "a_field_of_the_dashboard": lambda board: board.update(titel="x"),
    "a_value_of_the_dashboard": lambda board: board.update(graphTooltip=7),
    "a_variable": lambda board: board["templating"]["list"][0].update(multi="yes"),
    "a_field_of_a_panel": _in(STAT, discription="x"),
    "a_panel_without_a_place": _in(STAT, gridPos={"x": 0}),
    "an_option": _in(STAT, "options", colourMode="value"),
    "a_value_of_an_option": _in(STAT, "options", graphMode="areas"),
    "a_value_of_a_legend": _in(GRAPH, "options", "legend", placement="below"),
    "a_field_of_a_query": _in(GRAPH, "targets", 0, legend="x"),
    "a_format_of_a_query": _in(TABLE, "targets", 0, format="tabel"),
    "a_standard_property": _in(GRAPH, "fieldConfig", "defaults", units="s"),
    "the_type_of_a_property": _in(GRAPH, "fieldConfig", "defaults", min="0"),
    "a_property_of_the_type_of_panel": _in(GRAPH, "fieldConfig", "defaults", "custom", lineWith=1),
    "a_property_of_an_override": _override(GRAPH, "byName", "x", "custom.lineStile", {"fill": "dash"}),
    "a_value_of_an_override": _override(GRAPH, "byName", "x", "custom.lineStyle", {"fill": "dashes"}),
    "a_property_of_another_panel": _override(TABLE, "byName", "x", "custom.lineWidth", 1),
    "a_threshold": _in(STAT, "fieldConfig", "defaults", thresholds={"mode": "absolut", "steps": []}),
    "an_option_of_the_heatmap": _in(HEATMAP, "options", "color", sceme="Oranges"),
}

BREAKS: list[tuple[str, Break]] = [
    ("overrides nothing", _override(GRAPH, "byName", "nobody", "min", 0)),
    ("overrides nothing", _override(GRAPH, "byFrameRefID", "B", "min", 0)),
    ("overrides nothing", _override(TABLE, "byName", "connections", "unit", "s")),
    ("unknown matcher", _override(GRAPH, "byNickname", "orders", "min", 0)),
    ("unknown unit", _in(STAT, "fieldConfig", "defaults", unit="seconds")),
    ("unknown unit", _override(TABLE, "byName", "Connections", "unit", "furlongs")),
    ("unknown unit", _in(HEATMAP, "options", "yAxis", unit="second")),
    ("one colour", _steps((None, "green"))),
    ("one colour", _steps((None, "red"), (1, "red"))),
    ("one colour", _in(STAT, "fieldConfig", "defaults", color={"mode": "fixed", "fixedColor": "#00ff00"})),
    ("too wide", _override(TABLE, "byName", "pool", "custom.width", 1400)),
    ("too wide", lambda board: board["panels"][TABLE]["gridPos"].update(w=3)),
    ("healthy without data", _steps((None, "green"), (5, "red"))),  # never scraped
    ("healthy without data", _steps((None, "semi-dark-green"), (5, "red"))),
    ("healthy without data", _in(STAT, "targets", 0, instant=False, range=True)),  # the last value stays
    ("healthy without data", _in(STAT, "targets", 0, expr=f"{'sum(nothing)'} or vector(0)")),
    ("transforms nothing", _in(TABLE, "transformations", 0, "options", renameByName={"Value #A": "x"})),
    ("transforms nothing", _in(TABLE, "transformations", 0, "options", excludeByName={"time": True})),
    ("unknown transformation", _in(TABLE, "transformations", 0, id="organise")),
    ("sorts by nothing", _in(TABLE, "options", sortBy=[{"displayName": "Value", "desc": True}])),
    ("broken link", _link("/d/another?var-pool=x")),
    ("broken link", _link("/d/sqlalchemy-pool-pool?var-pools=x")),
    ("broken link", _link("/d/sqlalchemy-pool-pool?var-pool=${__data.fields.name}")),
    ("broken link", _link("https://example.org/docs/runbooks/${__value.raw}.md")),
    ("broken link", _link("d/sqlalchemy-pool-pool")),
    ("title is cut", _in(STAT, title="Callers who wait for a connection, " * 6)),
    ("axis of zeros", _zeros_without_an_end),
    ("not drawn", _in(GRAPH, type="piechart")),
]


@pytest.fixture(scope="module")
def asked(stage: Stage) -> Asked:
    return Asked(stage)


def test_no_faults(page: Grafana, asked: Asked) -> None:
    """The dashboard has no faults before it is broken."""
    assert [] == _faults(page, asked, small())


def test_zeros(page: Grafana, asked: Asked) -> None:
    """A graph of zeros has no fault, since its axis has an end."""
    board = small()
    _zeros(board)
    assert [] == _faults(page, asked, board)


@pytest.mark.parametrize(
    ("kind", "spoil"), BREAKS, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(BREAKS)]
)
def test_break(page: Grafana, asked: Asked, kind: str, spoil: Break) -> None:
    """Each change is found, and is called what it is."""
    board = small()
    spoil(board)
    assert kind in {found.partition(": ")[2].split(": ")[1] for found in _faults(page, asked, board)}


def test_healthy_cell(page: Grafana, asked: Asked) -> None:
    """A green cell without a value is found."""
    board = small()
    _override(TABLE, "byName", "Connections", "custom.cellOptions", {"type": "color-text"})(board)
    # A pool without connections has no quotient.
    target = board["panels"][TABLE]["targets"][0]
    target["expr"] = "0 * sum by (pool) (sqlalchemy_pool_connections) / 0"
    assert any("cells of Connections" in fault for fault in _faults(page, asked, board))


def test_mistyped(built: Path) -> None:
    """Both schemas find each of these; neither finds one in what is not broken."""
    boards = {name: small() for name in (NAME, *MISTYPED)}
    for name, spoil in MISTYPED.items():
        spoil(boards[name])
    found = mistyped(built, boards)
    assert [] == [str(fault) for fault in found if fault.board == NAME]
    assert {(name, age) for name in MISTYPED for age in AGES} == {
        (fault.board, fault.detail.split()[0]) for fault in found
    }


class Asked:
    """Asks each query once, since most breaks change none. Mutable state: the answers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._known: dict[str, tuple[Json, dict[str, Json]]] = {}

    def answers(self, board: Board) -> tuple[Json, dict[str, Json]]:
        """Return the answers during the incident, and by the name of each blindness."""
        asked = json.dumps([panel["targets"] for panel in board["panels"]])
        if asked not in self._known:
            self._known[asked] = (
                self._stage.incident.answers(board),
                {state: asking.answers(board) for state, asking in self._stage.blind.items()},
            )
        return self._known[asked]


def _faults(page: Grafana, asked: Asked, board: Board) -> list[str]:
    return [str(fault) for fault in faults(page, NAME, board, *asked.answers(board))]
