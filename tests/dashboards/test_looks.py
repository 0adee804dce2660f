# SPDX-License-Identifier: Apache-2.0
"""What a person sees of the dashboards: nothing that is healthy without data, cut, unreadable or out of sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import grafana
from tests.support.looks import RULES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.grafana import Board, Panel

pytestmark = pytest.mark.newest


@pytest.mark.parametrize("name", grafana.NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str, name: str) -> None:
    """Each rule holds in each dashboard."""
    assert [] == list(RULES[rule](grafana.load(name)))


def _named(board: Board, title: str) -> Panel:
    found: Panel = next(panel for panel in grafana.panels(board) if panel["title"] == title)
    return found


def _defaults(title: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _named(board, title)["fieldConfig"]["defaults"].update(changes)


def _target(title: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _named(board, title)["targets"][0].update(changes)


def _panel(title: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _named(board, title).update(changes)


def _options(title: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _named(board, title)["options"].update(changes)


def _green(board: Board) -> None:
    (mapping,) = _named(board, "Turned away")["fieldConfig"]["defaults"]["mappings"]
    mapping["options"]["result"]["color"] = "green"


def _wide(board: Board) -> None:
    for override in _named(board, "Pools that hurt")["fieldConfig"]["overrides"]:
        override["properties"] = [
            one if one["id"] != "custom.width" else {**one, "value": 150} for one in override["properties"]
        ]


def _uncoloured(board: Board) -> None:
    for override in _named(board, "Pools that hurt")["fieldConfig"]["overrides"]:
        override["properties"] = [one for one in override["properties"] if one["id"] != "mappings"]


def _one_more(board: Board) -> None:
    _named(board, "Pools that hurt")["transformations"][1]["options"]["indexByName"]["dialect"] = 30


STEPS = {"mode": "absolute", "steps": [{"value": None, "color": "green"}]}
LIST = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
# Changes that break each rule; they prove that the rule can fail.
BREAKS: list[tuple[str, Callable[[Board], Any]]] = [
    ("stats-are-of-now", _target("Turned away", instant=False, range=True)),
    ("stats-are-of-now", _options("Turned away", graphMode="area")),
    ("stats-without-data-are-grey", _defaults("Turned away", mappings=[])),
    ("stats-without-data-are-grey", _green),
    ("stats-without-data-are-grey", _panel("Turned away", description="Good: 0. Bad: more.")),
    ("stats-can-change-colour", _defaults("Turned away", thresholds=STEPS)),
    ("stats-can-change-colour", _defaults("Pools", color={"mode": "fixed", "fixedColor": "green"})),
    ("what-is-scraped-stands-first", _panel("Targets up", title="Pools seen")),
    ("titles-are-not-cut", _panel("Turned away", title="Callers that were turned away, a second")),
    ("graphs-of-many-have-few-lines", _target("In use, by pool", expr="sum by (pool) (a)")),
    ("graphs-of-many-have-few-lines", _options("In use, by pool", legend=LIST)),
    ("axes-have-an-end", _defaults("In use, by pool", custom={})),
    ("axes-have-an-end", _defaults("In use, by pool", min=None)),
    ("units-are-of-people", _defaults("Turned away", unit="cps")),
    ("units-are-of-people", _defaults("Stuck for", unit="s")),
    ("units-are-of-people", _defaults("Stuck for", unit="dateTimeFromNow")),
    (
        "failures-are-not-green",
        _defaults("Callers turned away, by pool", color={"mode": "palette-classic"}),
    ),
    ("cells-without-data-are-grey", _uncoloured),
    ("tables-fit", _wide),
    ("tables-fit", _one_more),
    ("tables-fit", lambda board: _named(board, "Pools that hurt")["gridPos"].update(w=12)),
    (
        "the-worst-is-first",
        _options("Alerts that fire", sortBy=[{"displayName": "alertname", "desc": False}]),
    ),
    ("the-worst-is-first", _options("Pools that hurt", sortBy=[])),
    ("no-panel-is-there-twice", lambda board: board["panels"].append(_named(board, "In use, by pool"))),
]


@pytest.mark.parametrize(("rule", "spoil"), BREAKS, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BREAKS)])
def test_rule_can_fail(rule: str, spoil: Callable[[Board], Any]) -> None:
    """Each rule reports a dashboard that breaks it."""
    board = grafana.load("overview")
    spoil(board)
    assert list(RULES[rule](board))


def test_every_rule_is_proven() -> None:
    """Each rule has a change that breaks it."""
    assert {rule for rule, _ in BREAKS} == set(RULES)


def test_the_pool_that_is_stuck_is_first() -> None:
    """The pools that hurt are sorted by the longest wait, then by how full they are, and these come first."""
    panel = _named(grafana.load("overview"), "Pools that hurt")
    assert ["Waits for", "Full"] == [one["displayName"] for one in panel["options"]["sortBy"]]
    organized = panel["transformations"][1]["options"]
    shown = sorted(organized["indexByName"], key=organized["indexByName"].__getitem__)
    assert ["pool", "Waits for", "Full"] == [organized["renameByName"].get(name, name) for name in shown[:3]]


def test_severities_have_an_order() -> None:
    """The table of alerts sorts them by number: critical above warning above info, each with its name and colour."""
    panel = _named(grafana.load("overview"), "Alerts that fire")
    (target,) = panel["targets"]
    for number, name in ((3, "critical"), (2, "warning"), (1, "info")):
        assert f'severity="{name}"}}) * {number}' in target["expr"]
    (mapping,) = [
        one["value"][1]["options"]
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == "mappings"
    ]
    assert {"3": "critical", "2": "warning", "1": "info"} == {
        key: one["text"] for key, one in mapping.items()
    }


def test_one_graph_has_all_of_a_pool() -> None:
    """Connections in use and idle, callers that wait, and the capacity are in one graph of the Pool dashboard."""
    panel = _named(grafana.load("pool"), "Connections and callers waiting")
    assert ["in use", "idle", "waiting", "capacity"] == [one["legendFormat"] for one in panel["targets"]]
