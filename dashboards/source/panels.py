# SPDX-License-Identifier: Apache-2.0
"""Build panels with one number, graphs and heatmaps in one common style with Grafana's foundation SDK."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Protocol

from grafana_foundation_sdk.builders import common, prometheus
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import heatmap as heatmaps
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import timeseries as series
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    FieldColorSeriesByMode,
    GridPos,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"
NO_DATA = "#8e8e8e"  # a grey that can be read on Grafana's dark and on its light background
NEUTRAL = "text"  # the theme's colour of text
AGE = (
    units.DurationInHoursMinutesSeconds
)  # a time of seconds to hours: 00:02:05, where `s` would write 2.08 mins
LONG_AGE = units.DurationInDaysHoursMinutesSeconds
CALLERS = units.RequestsPerSecond  # people, or what they asked for
EVENTS = units.OpsPerSecond

# An axis reaches at least so far, or a graph of zeros would have one to 100.
_LEAST_AXIS: dict[str, float] = {
    units.Short: 5,
    units.PercentUnit: 1,
    units.Seconds: 0.1,
    AGE: 10,
    LONG_AGE: 3600,
    CALLERS: 1,
    EVENTS: 1,
}


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel; ``name`` is the legend of its series, or the title of its column in a table.

    A ``limit`` is drawn as a dashed line and never stacked. A ``color`` is of all its series.
    """

    expr: str
    name: str
    limit: bool = False
    color: str | None = None

    @property
    def is_of_many(self) -> bool:
        """Whether it has a series for each value of a label."""
        return "{{" in self.name


class _Common(Protocol):
    """The methods that the builders of all panels have."""

    def title(self, title: str) -> Any: ...
    def description(self, description: str) -> Any: ...
    def datasource(self, datasource: DataSourceRef) -> Any: ...
    def grid_pos(self, grid_pos: GridPos) -> Any: ...
    def unit(self, unit: str) -> Any: ...


def style(panel: _Common, title: str, description: str, *, unit: str, span: int, height: int) -> None:
    """Set what panels of all types have."""
    panel.title(title)
    panel.description(description)
    panel.datasource(DATASOURCE)
    panel.grid_pos(GridPos(h=height, w=span))
    panel.unit(unit)


def target(query: Query, number: int) -> prometheus.Dataquery:
    """Return a query as a panel has it."""
    # Repeat the data source in each target: without its type, Grafana does not treat the query as Prometheus'.
    made = prometheus.Dataquery().ref_id(ascii_uppercase[number]).datasource(DATASOURCE)
    return made.expr(query.expr).legend_format(query.name)


def steps(
    warning: float | None, critical: float | None, *, is_good_high: bool = False
) -> build.ThresholdsConfig:
    """Return thresholds: green, orange from ``warning`` on, and red from ``critical`` on.

    With ``is_good_high``: red, orange from ``critical`` on, and green from ``warning`` on.
    """
    below, above = (RED, GREEN) if is_good_high else (GREEN, RED)
    levels = [Threshold(value=None, color=below)]
    middle, last = (critical, warning) if is_good_high else (warning, critical)
    if middle is not None:
        levels.append(Threshold(value=middle, color=ORANGE))
    if last is not None:
        levels.append(Threshold(value=last, color=above))
    return build.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def without_value(text: str) -> SpecialValueMap:
    """Return a mapping that shows a text in grey where there is no value.

    Without it, Grafana draws a missing value in the colour of the lowest threshold, which is green.
    """
    result = ValueMappingResult(text=text, color=NO_DATA, index=0)
    return SpecialValueMap(
        DashboardSpecialValueMapOptions(match=SpecialValueMatch.NULL_AND_NAN, result=result)
    )


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    span: int = 4,
    height: int = 3,
    warning: float | None = None,
    critical: float | None = None,
    is_good_high: bool = False,
    empty: str = "No data: see Targets up",
) -> Builder[Panel]:
    """Return a panel with the value of a query at the end of the time range as a large number.

    The query is an instant one: the last value of a range would stay, and stay green, after its target is lost.

    Args:
        title: title of the panel.
        description: what good and bad values look like.
        expr: the query.
        unit: unit of the value.
        span: width in columns of the grid, which has 24.
        height: height in rows of the grid.
        warning: the value from which it is orange.
        critical: the value from which it is red. Without both it is neither good nor bad, and has a neutral colour.
        is_good_high: below ``critical`` it is red, below ``warning`` orange.
        empty: what stands there in grey if the query has no value: why, or where to look.
    """
    panel = stats.Panel()
    style(panel, title, f"{description} Grey: {_of_grey(empty)}", unit=unit, span=span, height=height)
    is_neutral = warning is None and critical is None
    color = build.FieldColor().mode(FieldColorModeId.THRESHOLDS)
    if is_neutral:
        color = build.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(NEUTRAL)
    return (
        panel.with_target(target(Query(expr, ""), 0).instant())
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .thresholds(steps(warning, critical, is_good_high=is_good_high))
        .color_scheme(color)
        .mappings([without_value(empty)])
        .no_value(empty)
    )


def _of_grey(empty: str) -> str:
    """Describe what a grey stat is, from the text that it shows."""
    if empty.startswith("No data"):
        return "nothing is known; Targets up says whether anything is scraped."
    return f"{empty[:1].lower()}{empty[1:]}; or nothing is known, if Targets up is not 100 %."


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 8,
    stacked: bool = False,
    is_bad: bool = False,
    min_interval: str = "",
) -> Builder[Panel]:
    """Return a panel of queries over time, from 0, as lines or as stacked areas.

    A graph whose queries have many series has a table for a legend, with the last and the largest value of each, the
    largest first. What ``is_bad``, such as failures, is drawn in yellow to red, and never in green. Points are at least
    ``min_interval`` apart, such as 30s, for a query that takes long; a rate covers the time between two in any case.
    """
    panel = series.Panel()
    if min_interval:
        panel.interval(min_interval)
    style(panel, title, description, unit=unit, span=span, height=9)
    panel.draw_style(GraphDrawStyle.LINE).line_width(1).fill_opacity(40 if stacked else 10)
    panel.show_points(VisibilityMode.NEVER).min(0).axis_soft_max(_LEAST_AXIS[unit])
    if is_bad:
        panel.color_scheme(_bad(queries))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    panel.legend(_legend(is_table=any(query.is_of_many for query in queries)))
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    for number, query in enumerate(queries):
        panel.with_target(target(query, number).range())
        if query.limit:
            panel.override_by_query(ascii_uppercase[number], _DASHED)
        elif query.color:
            panel.override_by_query(ascii_uppercase[number], [_fixed(query.color)])
    return panel


def _bad(queries: tuple[Query, ...]) -> build.FieldColor:
    """Return shades of red for a few lines with names, and the redder the larger for many."""
    if any(query.is_of_many for query in queries):
        return (
            build.FieldColor().mode(FieldColorModeId.CONTINUOUS_YL_RD).series_by(FieldColorSeriesByMode.MAX)
        )
    return build.FieldColor().mode(FieldColorModeId.SHADES).fixed_color(RED)


def _legend(*, is_table: bool) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().placement(LegendPlacement.BOTTOM).show_legend(True)
    if is_table:
        legend.display_mode(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
        return legend.sort_by("Max").sort_desc(True)
    return legend.display_mode(LegendDisplayMode.LIST).calcs([])


def _fixed(color: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})


_DASHED = [
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
    DynamicConfigValue("custom.fillOpacity", 0),
    DynamicConfigValue("custom.stacking", {"mode": "none", "group": "limit"}),
    _fixed(RED),
]


def heatmap(title: str, description: str, expr: str, *, unit: str, span: int = 12) -> Builder[Panel]:
    """Return a heatmap of a histogram over time; ``expr`` returns Prometheus' cumulative buckets."""
    panel = heatmaps.Panel()
    style(panel, title, description, unit=units.Short, span=span, height=9)
    return (
        panel.with_target(target(Query(expr, "{{le}}"), 0).range().format(PromQueryFormat.HEATMAP))
        .calculate(False)
        .color(
            heatmaps.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .fill("dark-orange")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .rows_frame(heatmaps.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
        .y_axis(heatmaps.YAxisConfig().unit(unit))
        .cell_values(heatmaps.CellValues().unit(EVENTS))
        .filter_values(heatmaps.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_value(VisibilityMode.NEVER)
        .show_tooltip()
        .show_legend()
    )
