# SPDX-License-Identifier: Apache-2.0
"""Readers of the committed dashboards: panels, variables, and queries as Grafana sends them to Prometheus."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import promql_parser as promql

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DIRECTORY = ROOT / "dashboards"
NAMES = ("overview", "pool", "database", "fleet")

HIDDEN = 2  # Grafana's number for a variable that is not shown

Board = dict[str, Any]
Panel = dict[str, Any]
Expr = Any  # the parser's nodes have no common type


class Target(NamedTuple):
    """One query of a panel."""

    panel: Panel
    ref: str
    expr: str
    is_instant: bool

    def __str__(self) -> str:
        return f"{self.panel.get('title')} {self.ref}"


def load(name: str) -> Board:
    """Return a committed dashboard."""
    board: Board = json.loads((DIRECTORY / f"{name}.json").read_text("utf-8"))
    return board


def panels(board: Board) -> list[Panel]:
    """Return the panels, including those of collapsed rows, without the rows."""
    found = []
    for panel in board["panels"]:
        if panel["type"] != "row":
            found.append(panel)
        found += panel.get("panels", ())
    return found


def targets(board: Board) -> list[Target]:
    """Return the queries of all panels."""
    return [
        Target(panel, target["refId"], target["expr"], target.get("instant", False))
        for panel in panels(board)
        for target in panel.get("targets") or ()
    ]


def variables(board: Board, kind: str = "query") -> list[dict[str, Any]]:
    """Return the variables of a kind."""
    return [variable for variable in board["templating"]["list"] if variable["type"] == kind]


def interpolated(
    expr: str, chosen: Mapping[str, str | list[str]], board: Board, *, rate_interval: str, span: str = "1h"
) -> str:
    """Return a query as Grafana sends it.

    ``chosen`` has one value, or a list, for each variable that is not at All. A list becomes ``(a|b)``, and each value
    is quoted for a regular expression. All without a pattern of its own is a list of all options, see `with_options()`.
    """
    values = {variable["name"]: variable.get("allValue") or "()" for variable in variables(board)}
    for name, choice in chosen.items():
        if name in values:
            quoted = [_quoted(one) for one in ([choice] if isinstance(choice, str) else choice)]
            values[name] = quoted[0] if len(quoted) == 1 else f"({'|'.join(quoted)})"
    values |= {"__rate_interval": rate_interval, "__interval": rate_interval, "__range": span}
    # An unknown variable stays as it is, so that Prometheus refuses the query.
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda found: values.get(found[1] or found[2], found[0]), expr)


def with_options(
    board: Board,
    chosen: Mapping[str, str | list[str]],
    ask: Callable[[str], Iterable[Mapping[str, str]]],
    *,
    rate_interval: str,
    span: str,
) -> dict[str, str | list[str]]:
    """Return what is chosen, and the options of each variable whose All is the list of them.

    ``ask`` returns the labels that a query has at the end of the time range. Grafana makes a text of each, and its
    variable's regular expression takes the option from it.
    """
    found = dict(chosen)
    for variable in variables(board):
        if variable.get("allValue") or variable["name"] in found:
            continue
        query = variable_query(variable["query"])
        answers = ask(interpolated(query, found, board, rate_interval=rate_interval, span=span))
        texts = [",".join(f'{name}="{value}"' for name, value in labels.items()) for labels in answers]
        matches = (re.search(variable["regex"].strip("/"), text) for text in texts)
        found[variable["name"]] = sorted({match[1] for match in matches if match})
    return found


def _quoted(value: str) -> str:
    # With two backslashes, because the value is inside a string of PromQL.
    return re.sub(r"[\\^$*+?.()|{}\[\]]", lambda found: "\\\\" + found[0], value)


def parsed(expr: str, rate_interval: str = "4711s") -> Expr:
    """Parse a query after replacing its time variables; all others are in strings. ValueError if it is invalid."""
    for name in ("__rate_interval", "__interval", "__range"):
        expr = re.sub(
            rf"\$(?:{name}\b|\{{{name}\}})", rate_interval if name == "__rate_interval" else "1h", expr
        )
    return promql.parse(expr)


def is_hidden(variable: Mapping[str, Any]) -> bool:
    """Return whether Grafana does not show the variable, so that nobody chooses it."""
    return bool(variable["hide"] == HIDDEN)


def variable_selector(query: str) -> tuple[str, str]:
    """Return the selector (empty if there is none) and the label of ``label_values(…)``."""
    match = re.fullmatch(r"label_values\((?:(.+), *)?([a-zA-Z_]\w*)\)", query)
    if match is None:
        raise ValueError(f"not a query of label values: {query!r}")
    return match[1] or "", match[2]


def variable_query(query: str) -> str:
    """Return the expression of ``query_result(…)`` or the selector of ``label_values(…)``; ValueError for others."""
    match = re.fullmatch(r"query_result\((.+)\)", query)
    return match[1] if match else variable_selector(query)[0]


def walk(node: Expr, parents: tuple[Expr, ...] = ()) -> Iterator[tuple[Expr, tuple[Expr, ...]]]:
    """Yield a node and its descendants, each with its ancestors, the outermost first."""
    yield node, parents
    for child in _children(node):
        yield from walk(child, (*parents, node))


def _children(node: Expr) -> Iterator[Expr]:
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield child
    yield from getattr(node, "args", ())


def selectors(node: Expr) -> list[promql.VectorSelector]:
    """Return the selectors of a query."""
    return [one for one, _ in walk(node) if isinstance(one, promql.VectorSelector)]
