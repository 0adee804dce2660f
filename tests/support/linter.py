# SPDX-License-Identifier: Apache-2.0
"""The rules of grafana/dashboard-linter, a Go program that the tests cannot install, as Python functions.

Each function takes a dashboard and yields its faults. The rules have the linter's names and no exclusions. Where the
linter's documentation demands more than its code checks, they follow the documentation: they check every type of panel
and every range of a rate.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import promql_parser as promql
from grafana_foundation_sdk.models import units

from tests.support import grafana

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.grafana import Board, Expr, Target

DATASOURCE = ("$datasource", "${datasource}")
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}
RATES = {"rate", "irate", "increase"}
MAGIC = 4711  # seconds; stands for $__rate_interval in a parsed query, since no query has this range

RULES: dict[str, Callable[[Board], Iterator[str]]] = {}


def _rule(check: Callable[[Board], Iterator[str]]) -> Callable[[Board], Iterator[str]]:
    RULES[check.__name__.replace("_", "-")] = check
    return check


@_rule
def template_datasource_rule(board: Board) -> Iterator[str]:
    """The only variable of a data source has the expected name and label."""
    found = grafana.variables(board, "datasource")
    if [(one["name"], one.get("label"), one["query"]) for one in found] != [
        ("datasource", "Data source", "prometheus")
    ]:
        yield f"variables of data sources: {found}"


@_rule
def template_job_rule(board: Board) -> Iterator[str]:
    """A variable for the job exists, the same in all dashboards."""
    yield from _template(board, "job", "Job")


@_rule
def template_instance_rule(board: Board) -> Iterator[str]:
    """A variable for the instance exists, the same in all dashboards."""
    yield from _template(board, "instance", "Instance")


def _template(board: Board, name: str, label: str) -> Iterator[str]:
    found = [one for one in board["templating"]["list"] if one["name"] == name]
    if not found:
        yield f"no variable {name!r}"
    for one in found:
        expected = {"type": "query", "label": label, "multi": True, "allValue": ".+"}
        for key, value in expected.items():
            if one.get(key) != value:
                yield f"{key} of {name!r} is {one.get(key)!r} and not {value!r}"
        if one.get("datasource", {}).get("uid") not in DATASOURCE:
            yield f"data source of {name!r} is {one.get('datasource')}"


@_rule
def template_label_promql_rule(board: Board) -> Iterator[str]:
    """The query of a variable is one that Prometheus' data source knows, with a valid selector."""
    for one in grafana.variables(board):
        try:
            asked = grafana.variable_query(one["query"])
            if asked:
                grafana.parsed(asked)
        except ValueError as error:
            yield f"variable {one['name']!r}: {error}"


@_rule
def template_on_time_change_reload_rule(board: Board) -> Iterator[str]:
    """Variables are queried again when the time range changes."""
    for one in grafana.variables(board):
        if one.get("refresh") != 2:
            yield f"refresh of {one['name']!r} is {one.get('refresh')!r} and not 2"


@_rule
def panel_datasource_rule(board: Board) -> Iterator[str]:
    """Panels and their queries use the data source of the variable."""
    for panel in grafana.panels(board):
        for one in (panel, *panel.get("targets", ())):
            if one.get("datasource", {}).get("uid") not in DATASOURCE:
                yield f"{panel.get('title')!r} has the data source {one.get('datasource')}"


@_rule
def panel_title_description_rule(board: Board) -> Iterator[str]:
    """Panels have a title and a description."""
    for panel in grafana.panels(board):
        for key in ("title", "description"):
            if not panel.get(key, "").strip():
                yield f"panel {panel['id']} has no {key}"


@_rule
def panel_units_rule(board: Board) -> Iterator[str]:
    """Panels have a unit that Grafana knows, and so has each column with a unit of its own."""
    for panel in grafana.panels(board):
        config = panel.get("fieldConfig", {})
        found = [config.get("defaults", {}).get("unit")]
        for override in config.get("overrides", ()):
            found += [one["value"] for one in override["properties"] if one["id"] == "unit"]
        for unit in found:
            if unit not in UNITS:
                yield f"{panel.get('title')!r} has the unit {unit!r}"


@_rule
def panel_no_targets_rule(board: Board) -> Iterator[str]:
    """Panels have a query."""
    for panel in grafana.panels(board):
        if not panel.get("targets"):
            yield f"{panel.get('title')!r} has no query"


@_rule
def target_logql_rule(board: Board) -> Iterator[str]:
    """Only Prometheus is queried, so that no query of Loki can be invalid."""
    for panel in grafana.panels(board):
        for one in (panel, *panel.get("targets", ())):
            if one.get("datasource", {}).get("type") != "prometheus":
                yield f"{panel.get('title')!r} does not ask Prometheus"


@_rule
def target_logql_auto_rule(board: Board) -> Iterator[str]:
    """No query uses ``$__auto``, which is only for Loki."""
    for target in grafana.targets(board):
        if re.search(r"\$(__auto\b|\{__auto\})", target.expr):
            yield f"{target}: {target.expr}"


@_rule
def target_promql_rule(board: Board) -> Iterator[str]:
    """Queries are PromQL."""
    for target in grafana.targets(board):
        try:
            grafana.parsed(target.expr)
        except ValueError as error:
            yield f"{target}: {target.expr}: {error}"


@_rule
def target_rate_interval_rule(board: Board) -> Iterator[str]:
    """Rates are over ``$__rate_interval``, and so is every other range, except for what was seen lately."""
    for target, expr in _parsed(board):
        for node, parents in grafana.walk(expr):
            if isinstance(node, promql.SubqueryExpr):
                yield f"{target}: a subquery, whose steps are not the graph's: {target.expr}"
            elif isinstance(node, promql.MatrixSelector) and node.range.total_seconds() != MAGIC:
                function = parents[-1].func.name if parents else "nothing"
                if (
                    function == "last_over_time"
                ):  # how long a target is remembered is no matter of the graph's steps
                    continue
                yield f"{target}: {function} over {node.range}: {target.expr}"


@_rule
def target_job_rule(board: Board) -> Iterator[str]:
    """Every selector matches the variable of the job, and may narrow it further."""
    for target, selector in _selectors(board):
        if not _matches(selector, "job", "job"):
            yield f"{target}: {selector}"


@_rule
def target_instance_rule(board: Board) -> Iterator[str]:
    """Every selector matches the variable of the instance, but for series of a fleet, which have none.

    Those are of the jobs in the variable ``recorded``, which is empty where instances are chosen.
    """
    for target, selector in _selectors(board):
        is_of_fleet = str(selector.name).startswith("fleet_") and _matches(selector, "job", "recorded")
        if not is_of_fleet and not _matches(selector, "instance", "instance"):
            yield f"{target}: {selector}"


def _matches(selector: promql.VectorSelector, label: str, variable: str) -> bool:
    found = [(one.op, one.value) for one in selector.matchers.matchers if one.name == label]
    return (promql.MatchOp.Re, f"${variable}") in found


def _selectors(board: Board) -> Iterator[tuple[Target, promql.VectorSelector]]:
    for target, expr in _parsed(board):
        for selector in grafana.selectors(expr):
            yield target, selector


@_rule
def target_counter_agg_rule(board: Board) -> Iterator[str]:
    """A counter is used only inside of a rate function."""
    for target, expr in _parsed(board):
        for node, parents in grafana.walk(expr):
            if isinstance(node, promql.VectorSelector) and str(node.name).endswith("_total"):
                call = parents[-2] if len(parents) > 1 else None
                if not (isinstance(call, promql.Call) and call.func.name in RATES):
                    yield f"{target}: {node}"


@_rule
def uneditable_dashboard(board: Board) -> Iterator[str]:
    """The dashboard cannot be edited in the browser, where the next provisioning undoes it."""
    if board.get("editable") is not False:
        yield f"editable is {board.get('editable')!r}"


def _parsed(board: Board) -> Iterator[tuple[Target, Expr]]:
    for target in grafana.targets(board):
        try:
            yield target, grafana.parsed(target.expr)
        except ValueError:
            continue  # target_promql_rule yields it
