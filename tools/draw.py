# SPDX-License-Identifier: Apache-2.0
"""Draw the panels of a dashboard from Prometheus' query results with Matplotlib, in Grafana's layout."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

DPI = 100
WIDTH = 1600  # pixels, for the 24 columns of Grafana's grid
CELL, GAP, HEAD = 38, 8, 74  # pixels: a row of the grid with its gap, the gap, and the dashboard's header
CANVAS, PANEL, TEXT, FAINT, GRID = "#111217", "#181b1f", "#ccccdc", "#8e8e99", "#2a2d33"
LINK = "#6e9fff"
COLOURS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}
PALETTE = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300",
    "#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477", "#b7dbab", "#f4d598", "#70dbed", "#f9ba8f",
)  # fmt: skip
ORANGES = LinearSegmentedColormap.from_list("oranges", ["#2b1d12", "#8c3d04", "#f16913", "#fdd0a2"])
LABEL = "Rendered from the panels' queries with Matplotlib; not a screenshot of Grafana"
MORE = "+{} more"


class Line(NamedTuple):
    """One series: its labels, and pairs of Unix time and value."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Source(Protocol):
    """Runs queries over the whole time range or at its end."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    def over_time(self, expr: str) -> list[Line]: ...
    def at_end(self, expr: str) -> list[Line]: ...


def draw(board: Mapping[str, Any], source: Source, chosen: str, path: Path) -> None:
    """Draw a dashboard into a PNG; ``chosen`` is the text that shows the values of its variables."""
    height = HEAD + CELL * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=CANVAS)
    page = _Page(figure, height)
    page.write(16, 26, board["title"], size=15, weight="bold")
    page.write(16, 52, chosen, colour=FAINT)
    page.write(WIDTH - 16, 26, LABEL, colour=COLOURS["orange"], align="right")
    page.write(
        WIDTH - 16, 52, f"{_clock(source.start)} to {_clock(source.end)} UTC", colour=FAINT, align="right"
    )
    for annotation in board["annotations"]["list"]:
        page.marks += [line.points[0][0] for line in source.over_time(annotation["expr"])]
    for panel in board["panels"]:
        _PANELS[panel["type"]](page, panel, source)
    figure.savefig(path, facecolor=CANVAS, metadata={"Description": LABEL})


def _clock(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%H:%M:%S")


class _Page:
    """A figure with positions in pixels from its upper left corner."""

    def __init__(self, figure: Figure, height: int) -> None:
        self.figure, self._height = figure, height
        self.marks: list[float] = []  # when an alert began to fire, in Unix time

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9,
        colour: str = TEXT,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        """Write text that is vertically centred on ``y``."""
        self.figure.text(
            x / WIDTH, 1 - y / self._height, text.replace("$", r"\$"), fontsize=size, color=colour,
            ha=align, va="center", weight=weight,
        )  # fmt: skip

    def axes(self, x: float, y: float, width: float, height: float, colour: str = PANEL) -> Axes:
        """Return axes whose plot area has this position and size."""
        box = (x / WIDTH, 1 - (y + height) / self._height, width / WIDTH, height / self._height)
        axes = self.figure.add_axes(box, facecolor=colour)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
        return axes

    def box(self, panel: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """Draw the background and the title of a panel, and return its position and size."""
        at = panel["gridPos"]
        x, y = at["x"] * WIDTH / 24 + GAP / 2, HEAD + at["y"] * CELL
        width, height = at["w"] * WIDTH / 24 - GAP, at["h"] * CELL - GAP
        blank = self.axes(x, y, width, height)
        blank.set_xticks([])
        blank.set_yticks([])
        self.write(x + 10, y + 16, panel["title"], size=9.5)
        return x, y, width, height


def _row(page: _Page, panel: Mapping[str, Any], _source: Source) -> None:
    y = HEAD + panel["gridPos"]["y"] * CELL + CELL / 2
    page.write(12, y, f"⌄  {panel['title']}", size=11, weight="bold")


def _stat(page: _Page, panel: Mapping[str, Any], source: Source) -> None:
    x, y, width, height = page.box(panel)
    defaults = panel["fieldConfig"]["defaults"]
    lines = source.over_time(panel["targets"][0]["expr"])
    points = [point for point in lines[0].points if not math.isnan(point[1])] if lines else []
    if not points:
        page.write(
            x + width / 2, y + height / 2 + 8, defaults["noValue"], size=20, align="center", colour=FAINT
        )
        return
    value = points[-1][1]
    colour = _threshold(defaults["thresholds"]["steps"], value)
    axes = page.axes(x, y + height * 0.62, width, height * 0.38)
    axes.set_xticks([])
    axes.set_yticks([])
    times, values = zip(*points, strict=True)
    axes.fill_between(times, values, color=colour, alpha=0.2, linewidth=0)
    axes.plot(times, values, color=colour, linewidth=1)
    axes.set_xlim(source.start, source.end)
    axes.set_ylim(min(0, *values), max(values) * 1.05 or 1)
    text = _formatted(value, defaults["unit"], now=source.end)
    page.write(
        x + width / 2, y + height * 0.48, text, size=min(24, 190 / len(text)), align="center", colour=colour
    )


def _timeseries(page: _Page, panel: Mapping[str, Any], source: Source) -> None:
    x, y, width, height = page.box(panel)
    dashed = {
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if any(one["id"] == "custom.lineStyle" for one in override["properties"])
    }
    named: list[tuple[str, str, Line, bool]] = []
    colours = iter(PALETTE * 4)
    for target in panel["targets"]:
        is_limit = target["refId"] in dashed
        found = sorted(source.over_time(target["expr"]), key=lambda line: sorted(line.labels.items()))
        for line in found:
            name = _legend(target["legendFormat"], line.labels)
            named.append((name, COLOURS["red"] if is_limit else next(colours), line, is_limit))
    rows = _legend_rows(named, width - 20)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes = page.axes(x + 62, y + 34, width - 86, height - 62 - 16 * len(rows))
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal":
        _stack(axes, [(colour, line) for _, colour, line, is_limit in named if not is_limit], source)
        named_lines = [one for one in named if one[3]]
    else:
        named_lines = named
    for _, colour, line, is_limit in named_lines:
        times, values = _plottable(line)
        axes.plot(times, values, color=colour, linewidth=1.1, linestyle=(0, (6, 4)) if is_limit else "-")
        if not is_limit:
            axes.fill_between(times, values, color=colour, alpha=0.08, linewidth=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_ylim(0, axes.get_ylim()[1] if axes.get_ylim()[1] > 0.06 or _is_any(named) else 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=unit == "short" and axes.get_ylim()[1] > 1.5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _formatted(value, unit)))
    _time_axis(axes, source, page.marks)
    for row, items in enumerate(rows):
        at = x + 12
        bottom = y + height - 14 - 16 * (len(rows) - 1 - row)
        for name, colour in items:
            if colour:
                page.write(at, bottom, "━", size=8, colour=colour)
            page.write(at + 16, bottom, name, size=7.8, colour=TEXT if colour else FAINT)
            at += _width(name)


def _is_any(named: Sequence[tuple[str, str, Line, bool]]) -> bool:
    return any(value > 0 for _, _, line, _ in named for _, value in line.points)


def _stack(axes: Axes, lines: Sequence[tuple[str, Line]], source: Source) -> None:
    times = sorted({when for _, line in lines for when, _ in line.points})
    base = [0.0] * len(times)
    for colour, line in lines:
        values = {when: 0.0 if math.isnan(value) else value for when, value in line.points}
        top = [below + values.get(when, 0.0) for below, when in zip(base, times, strict=True)]
        dates = [_date(when) for when in times]
        axes.fill_between(dates, base, top, color=colour, alpha=0.4, linewidth=0)
        axes.plot(dates, top, color=colour, linewidth=1.0)
        base = top
    axes.set_xlim(_date(source.start), _date(source.end))


def _heatmap(page: _Page, panel: Mapping[str, Any], source: Source) -> None:
    x, y, width, height = page.box(panel)
    lines = sorted(source.over_time(panel["targets"][0]["expr"]), key=lambda line: float(line.labels["le"]))
    if not lines:
        page.write(x + width / 2, y + height / 2, "No data", size=11, align="center", colour=FAINT)
        return
    axes = page.axes(x + 62, y + 34, width - 86, height - 66)
    times = [when for when, _ in lines[-1].points]
    columns = {when: at for at, when in enumerate(times)}
    cells = []
    below = [0.0] * len(times)
    for line in lines:
        cumulative = list(below)
        for when, value in line.points:
            cumulative[columns[when]] = value
        # Prometheus' buckets are cumulative. Subtract the bucket below, as Grafana's heatmap does.
        cells.append(
            [max(0.0, here - under) or math.nan for here, under in zip(cumulative, below, strict=True)]
        )
        below = cumulative
    step = times[1] - times[0]
    edges = [_date(when - step / 2) for when in (*times, times[-1] + step)]
    axes.pcolormesh(edges, range(len(lines) + 1), cells, cmap=ORANGES, norm=PowerNorm(0.5), linewidth=0)
    names = [_formatted(float(line.labels["le"]), "s") for line in lines]
    axes.set_yticks(range(1, len(lines) + 1, 2), names[::2], fontsize=7)
    axes.grid(color=GRID, linewidth=0.4, axis="y")
    _time_axis(axes, source, page.marks)


def _table(page: _Page, panel: Mapping[str, Any], source: Source) -> None:
    x, y, width, height = page.box(panel)
    columns, rows = _rows(panel, source)
    styles = {
        override["matcher"]["options"]: {one["id"]: one["value"] for one in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    rows = rows[: int((height - 62) // 25)]
    cells = {name: [_cell(row.get(name), styles.get(name, {})) for row in rows] for name in columns}
    left, widths = (
        x + 12,
        column_widths([[name, *(text for text, _ in cells[name])] for name in columns], width - 20),
    )
    for name, of_column in zip(columns, widths, strict=True):
        page.write(left, y + 44, name, size=8.5, colour=LINK)
        for number, (text, colour) in enumerate(cells[name]):
            page.write(left, y + 70 + number * 25, text, size=8.5, colour=colour)
        left += of_column
    if not rows:
        page.write(x + width / 2, y + height / 2, "No data", size=11, align="center", colour=FAINT)


def column_widths(columns: Sequence[Sequence[str]], width: float) -> list[float]:
    """Return the widths of columns with these texts: equal, but for those that need more, which the others give."""
    needed = [max(12 + 7 * len(text) for text in texts) for texts in columns]
    equal = width / len(columns)
    for _ in columns:  # those that need more leave less for each of the others
        wide = [need for need in needed if need > equal]
        equal = max(0.0, width - sum(wide)) / max(1, len(columns) - len(wide))
    return [max(need, equal) for need in needed]


def _cell(value: str | float | None, style: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text of a cell and its colour."""
    if isinstance(value, float):
        colour = _threshold(style["thresholds"]["steps"], value) if "thresholds" in style else TEXT
        return _formatted(value, style.get("unit", "short")), colour
    return value or "-", LINK if "links" in style else TEXT


def _rows(panel: Mapping[str, Any], source: Source) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and the rows of a table; series whose common labels are equal share a row."""
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    keys = [name for name in organize["indexByName"] if not name.startswith("Value")]
    rows: list[dict[str, Any]] = []
    for target in panel["targets"]:
        value = "Value" if len(panel["targets"]) == 1 else f"Value #{target['refId']}"
        for line in source.at_end(target["expr"]):
            agreeing = (one for one in rows if all(one.get(key, of) == of for key, of in line.labels.items()))
            row = next(agreeing, None)
            if row is None:
                rows.append(row := {})
            row.update(line.labels)
            if column := organize["renameByName"].get(value):
                row[column] = line.points[0][1]
    for sort in panel["options"].get("sortBy", ()):
        # Sort rows without a value last: they cannot be compared with a text or a number.
        has = [row for row in rows if sort["displayName"] in row]
        has_not = [row for row in rows if sort["displayName"] not in row]
        has.sort(key=itemgetter(sort["displayName"]), reverse=sort.get("desc", False))
        rows = has + has_not
    return [*keys, *organize["renameByName"].values()], rows


_PANELS: Mapping[str, Callable[[_Page, Mapping[str, Any], Source], None]] = {
    "row": _row,
    "stat": _stat,
    "timeseries": _timeseries,
    "heatmap": _heatmap,
    "table": _table,
}


def _date(when: float) -> float:
    """Return a Unix time as Matplotlib counts it, in days."""
    return when / 86400


def _plottable(line: Line) -> tuple[Any, list[float]]:
    """Return times and values, with a gap where the series was absent for longer than two steps."""
    times, values = [], []
    before: float | None = None
    for when, value in line.points:
        if before is not None and when - before > 2.5:  # seconds: two and a half steps
            times.append(_date((when + before) / 2))
            values.append(math.nan)
        times.append(_date(when))
        values.append(value)
        before = when
    return times, values


def _time_axis(axes: Axes, source: Source, marks: Sequence[float]) -> None:
    for when in marks:
        axes.axvline(_date(when), color=COLOURS["red"], linewidth=0.8, linestyle=":", alpha=0.7)
    axes.set_xlim(_date(source.start), _date(source.end))
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=7))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S"))  # type: ignore[no-untyped-call]


def _legend(template: str, labels: Mapping[str, str]) -> str:
    name = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)
    return " ".join(name.split())


def _width(name: str) -> float:
    """Return the approximate width of a legend entry in pixels."""
    return 30 + 6.4 * len(name)


def _legend_rows(
    named: Sequence[tuple[str, str, Line, bool]], width: float, most: int = 2
) -> list[list[tuple[str, str]]]:
    """Return the legend entries that fit, line by line; if some do not fit, the last entry is their number."""
    rows: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for number, (name, colour, _, _) in enumerate(named):
        room = width - (_width(MORE) if len(rows) == most else 0)
        if used + _width(name) > room and rows[-1]:
            if len(rows) == most:
                rows[-1].append((MORE.format(len(named) - number), ""))
                break
            rows.append([])
            used = 0.0
        rows[-1].append((name, colour))
        used += _width(name)
    return rows


def _threshold(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    return COLOURS[[step for step in steps if step["value"] is None or value >= step["value"]][-1]["color"]]


def _formatted(value: float, unit: str, *, now: float = 0.0) -> str:  # noqa: PLR0911 - one for each unit
    if math.isinf(value):
        return "+Inf"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "dateTimeFromNow":
        return f"{_formatted(now - value / 1000, 's')} ago"
    if unit == "dateTimeAsIso":
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "cps":
        return f"{value:.3g} c/s"
    if unit == "s":
        for size, name in ((86400, "day"), (3600, "hour"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value / 1000:.3g} K"
