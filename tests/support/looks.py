# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a dashboard, as rules: each function takes a dashboard and yields its faults.

The rules know Grafana's layout by these figures: of a window 1,440 pixels wide, panels have 1,406, the grid has 24
columns with gaps of 8 pixels, and a title is cut before the icon of the description.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.support import grafana

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.grafana import Board, Panel

WIDTH, COLUMNS, GAP = 1406, 24, 8
PHONE = 375
CHARACTER, ICON = (
    7.4,
    40,
)  # pixels of one character of a title on average, and of the icon and the margin beside it
GREY = {"#8e8e8e"}
HEALTHY = {"green", "semi-dark-green", "dark-green", "light-green", "super-light-green"}
# A label of which a fleet has so many values that a graph cannot show a line for each.
MANY = {"pool", "instance", "worker", "site", "application_name"}
BAD_TITLES = re.compile(
    r"turned away|failed|errors|dead|leak|deadlock|not seen|could not see|nested|for themselves|refuses|stuck|lag",
    re.IGNORECASE,
)

RULES: dict[str, Callable[[Board], Iterator[str]]] = {}


def _rule(check: Callable[[Board], Iterator[str]]) -> Callable[[Board], Iterator[str]]:
    RULES[check.__name__.replace("_", "-")] = check
    return check


def _of(board: Board, kind: str) -> Iterator[tuple[Panel, dict[str, Any]]]:
    for panel in grafana.panels(board):
        if panel["type"] == kind:
            yield panel, panel["fieldConfig"]["defaults"]


def pixels(panel: Panel) -> float:
    """Return the width of a panel."""
    width: float = (WIDTH + GAP) / COLUMNS * panel["gridPos"]["w"] - GAP
    return width


@_rule
def stats_are_of_now(board: Board) -> Iterator[str]:
    """A stat asks an instant query: the last value of a range is shown for as long as the range, whatever happened."""
    for panel, _ in _of(board, "stat"):
        for target in panel["targets"]:
            if not target.get("instant") or target.get("range"):
                yield f"{panel['title']}: not an instant query"
        if panel["options"]["graphMode"] != "none":
            yield f"{panel['title']}: a graph of one value"


@_rule
def stats_without_data_are_grey(board: Board) -> Iterator[str]:
    """A stat without a value is grey, says what to do or why, and its description says what grey is."""
    for panel, defaults in _of(board, "stat"):
        results = [
            one["options"]["result"]
            for one in defaults.get("mappings", ())
            if (one["type"], one["options"].get("match")) == ("special", "null+nan")
        ]
        if len(results) != 1 or results[0].get("color") not in GREY or len(results[0].get("text", "")) < 10:
            yield f"{panel['title']}: without data it is {results}"
        elif len(results[0]["text"]) > 26:
            yield f"{panel['title']}: the text is too long to be read: {results[0]['text']}"
        if "Grey: " not in panel["description"]:
            yield f"{panel['title']}: the description does not say what grey is"


@_rule
def stats_can_change_colour(board: Board) -> Iterator[str]:
    """A stat can be another colour than green, or is neither good nor bad, says so, and has a neutral colour."""
    for panel, defaults in _of(board, "stat"):
        if defaults["color"]["mode"] == "fixed":
            if (
                defaults["color"]["fixedColor"] in HEALTHY
                or "Neither good nor bad" not in panel["description"]
            ):
                yield f"{panel['title']}: always {defaults['color']['fixedColor']}"
        elif not {"red", "orange"} & {step["color"] for step in defaults["thresholds"]["steps"]}:
            yield f"{panel['title']}: it cannot leave green"


@_rule
def what_is_scraped_stands_first(board: Board) -> Iterator[str]:
    """The first panel is *Targets up*: all others depend on it."""
    first = grafana.panels(board)[0]
    if (first["title"], first["type"]) != ("Targets up", "stat"):
        yield f"{first['title']} stands first"


@_rule
def titles_are_not_cut(board: Board) -> Iterator[str]:
    """A title has room beside the icon of the description."""
    for panel in grafana.panels(board):
        if len(panel["title"]) * CHARACTER > pixels(panel) - ICON:
            yield f"{panel['title']}: {pixels(panel):.0f} pixels"


@_rule
def graphs_of_many_have_few_lines(board: Board) -> Iterator[str]:
    """A graph by pool, process, site or application shows the largest alone, with a legend that is a sorted table."""
    for panel, _ in _of(board, "timeseries"):
        legend = panel["options"]["legend"]
        names = [target["legendFormat"] for target in panel["targets"]]
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            if (
                labels & MANY
                and "database" not in labels
                and not re.match(r"(max by \(.+?\) \()?topk\(", target["expr"])
            ):
                yield f"{panel['title']}: a line for each {labels & MANY}"
        if any("{{" in name for name in names) and (
            (legend["displayMode"], legend.get("sortBy"), legend.get("sortDesc")) != ("table", "Max", True)
            or not {"lastNotNull", "max"} <= set(legend["calcs"])
        ):
            yield f"{panel['title']}: the legend is no table with last and max, sorted"


@_rule
def axes_have_an_end(board: Board) -> Iterator[str]:
    """An axis begins at 0 and has a soft end, or Grafana draws a graph of zeros up to 100."""
    for panel, defaults in _of(board, "timeseries"):
        if defaults.get("min") != 0 or not 0 < defaults["custom"].get("axisSoftMax", 0) < 100 * 36 + 1:
            yield f"{panel['title']}: {defaults['custom'].get('axisSoftMax')}"


@_rule
def units_are_of_people(board: Board) -> Iterator[str]:
    """Nothing is counted in ``c/s``, and no moment is shown as a number that only rises."""
    for panel in grafana.panels(board):
        text = str(panel["fieldConfig"])
        if "'cps'" in text or (panel["type"] == "stat" and "dateTime" in text):
            yield f"{panel['title']}: {panel['fieldConfig']['defaults'].get('unit')}"
        unit = panel["fieldConfig"]["defaults"].get("unit")
        is_age = re.search(
            r"longest_held|idle_in_transaction_seconds|time\(\)|oldest_connection", str(panel["targets"])
        )
        if panel["type"] in {"stat", "timeseries"} and is_age and unit == "s":
            yield f"{panel['title']}: an age in decimal minutes"


@_rule
def failures_are_not_green(board: Board) -> Iterator[str]:
    """A graph of failures has no line in the first colour of the palette, which is green."""
    for panel, defaults in _of(board, "timeseries"):
        mode = defaults.get("color", {}).get("mode", "palette-classic")
        if BAD_TITLES.search(panel["title"]) and mode not in {"continuous-YlRd", "shades"}:
            yield f"{panel['title']}: {mode}"


@_rule
def tables_fit(board: Board) -> Iterator[str]:
    """Every column has a width, one of them can grow, all fit the panel, and on a phone the first three are seen."""
    for panel, _ in _of(board, "table"):
        organized = next(one for one in panel["transformations"] if one["id"] == "organize")["options"]
        names = [
            organized["renameByName"].get(name, name)
            for name in sorted(organized["indexByName"], key=organized["indexByName"].__getitem__)
            if not organized["excludeByName"].get(name)
        ]
        widths = {
            override["matcher"]["options"]: (one["id"], one["value"])
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] in {"custom.width", "custom.minWidth"}
        }
        if missing := set(names) - widths.keys():
            yield f"{panel['title']}: no width for {missing}"
            continue
        if [kind for kind, _ in widths.values()].count("custom.minWidth") != 1:
            yield f"{panel['title']}: not one column can grow"
        if (total := sum(width for _, width in widths.values())) > pixels(panel):
            yield f"{panel['title']}: {total} pixels in {pixels(panel):.0f}"
        if names[0] == "pool" and sum(widths[name][1] for name in names[:3]) > PHONE:
            yield f"{panel['title']}: a phone shows less than three columns"


@_rule
def cells_without_data_are_grey(board: Board) -> Iterator[str]:
    """A coloured cell without a value is grey: it would have the colour of the lowest threshold, which is green."""
    for panel, _ in _of(board, "table"):
        for override in panel["fieldConfig"]["overrides"]:
            properties = {one["id"]: one["value"] for one in override["properties"]}
            mappings: list[dict[str, Any]] = properties.get("mappings", [])
            colors = [one["options"].get("result", {}).get("color") for one in mappings]
            if "custom.cellOptions" in properties and not GREY & set(colors):
                yield f"{panel['title']}: {override['matcher']['options']}"


@_rule
def the_worst_is_first(board: Board) -> Iterator[str]:
    """A table is sorted by a column with numbers, the largest first: names would sort info above warning."""
    for panel, _ in _of(board, "table"):
        renamed = next(one for one in panel["transformations"] if one["id"] == "organize")["options"][
            "renameByName"
        ]
        for one in panel["options"].get("sortBy", ()):
            if not one["desc"] or one["displayName"] not in renamed.values():
                yield f"{panel['title']}: sorted by {one}"
        if {"Pools that hurt", "Alerts that fire"} & {panel["title"]} and not panel["options"].get("sortBy"):
            yield f"{panel['title']}: not sorted"


@_rule
def no_panel_is_there_twice(board: Board) -> Iterator[str]:
    """No two panels ask the same: a variable narrows a panel, a copy does not."""
    seen: dict[tuple[str, ...], str] = {}
    for panel in grafana.panels(board):
        asked = (panel["type"], *(target["expr"] for target in panel["targets"]))
        if asked in seen:
            yield f"{panel['title']}: the same as {seen[asked]}"
        seen[asked] = panel["title"]
