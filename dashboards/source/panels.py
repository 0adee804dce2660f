# SPDX-License-Identifier: Apache-2.0
"""Build panels and dashboards in one common style with Grafana's foundation SDK."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal, Protocol

from grafana_foundation_sdk.builders import (
    common,
    prometheus,
)
from grafana_foundation_sdk.builders import (
    dashboard as build,
)
from grafana_foundation_sdk.builders import (
    heatmap as heatmaps,
)
from grafana_foundation_sdk.builders import (
    stat as stats,
)
from grafana_foundation_sdk.builders import (
    table as tables,
)
from grafana_foundation_sdk.builders import (
    timeseries as series,
)
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
    TableCellHeight,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .promql import ALERTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "sqlalchemy-pool"
RUNBOOKS = "https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter/blob/main/docs/runbooks"
GREEN, ORANGE, RED = "green", "orange", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel; ``name`` is the legend of its series, or the title of its column in a table.

    A ``limit`` is drawn as a dashed line and never stacked.
    """

    expr: str
    name: str
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The style of a table column: its unit, and the values from which it is orange and red."""

    unit: str = units.Short
    warning: float | None = None
    critical: float | None = None


class _Common(Protocol):
    """The methods that the builders of all panels have."""

    def title(self, title: str) -> Any: ...
    def description(self, description: str) -> Any: ...
    def datasource(self, datasource: DataSourceRef) -> Any: ...
    def grid_pos(self, grid_pos: GridPos) -> Any: ...
    def unit(self, unit: str) -> Any: ...


def _common(panel: _Common, title: str, description: str, *, unit: str, span: int, height: int) -> None:
    panel.title(title)
    panel.description(description)
    panel.datasource(DATASOURCE)
    panel.grid_pos(GridPos(h=height, w=span))
    panel.unit(unit)


def _target(query: Query, number: int) -> prometheus.Dataquery:
    # Repeat the data source in each target: without its type, Grafana does not treat the query as Prometheus'.
    target = prometheus.Dataquery().ref_id(ascii_uppercase[number]).datasource(DATASOURCE)
    return target.expr(query.expr).legend_format(query.name)


def steps(warning: float | None, critical: float | None) -> build.ThresholdsConfig:
    """Return thresholds: green, orange from ``warning`` on, and red from ``critical`` on."""
    levels = [Threshold(value=None, color=GREEN)]
    if warning is not None:
        levels.append(Threshold(value=warning, color=ORANGE))
    if critical is not None:
        levels.append(Threshold(value=critical, color=RED))
    return build.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    span: int = 3,
    warning: float | None = None,
    critical: float | None = None,
    is_good_high: bool = False,
) -> Builder[Panel]:
    """Return a panel with the last value of a query as a large number in front of its graph."""
    panel = stats.Panel()
    _common(panel, title, description, unit=unit, span=span, height=4)
    levels = steps(warning, critical)
    if is_good_high:
        levels = (
            build.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=None, color=RED), Threshold(value=warning, color=GREEN)])
        )
    return (
        panel.with_target(_target(Query(expr, ""), 0).range())
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .thresholds(levels)
        .color_scheme(build.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .no_value("none")
    )


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 8,
    stacked: bool = False,
) -> Builder[Panel]:
    """Return a panel of queries over time, from 0, as lines or as stacked areas."""
    panel = series.Panel()
    _common(panel, title, description, unit=unit, span=span, height=8)
    panel.draw_style(GraphDrawStyle.LINE).line_width(1).fill_opacity(40 if stacked else 10)
    panel.show_points(VisibilityMode.NEVER).min(0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
        if query.limit:
            panel.override_by_query(ascii_uppercase[number], _DASHED)
    return panel


_DASHED = [
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
    DynamicConfigValue("custom.fillOpacity", 0),
    DynamicConfigValue("custom.stacking", {"mode": "none", "group": "limit"}),
    DynamicConfigValue("color", {"mode": "fixed", "fixedColor": RED}),
]


def heatmap(title: str, description: str, expr: str, *, unit: str, span: int = 12) -> Builder[Panel]:
    """Return a heatmap of a histogram over time; ``expr`` returns Prometheus' cumulative buckets."""
    panel = heatmaps.Panel()
    _common(panel, title, description, unit=units.Short, span=span, height=8)
    return (
        panel.with_target(_target(Query(expr, "{{le}}"), 0).range().format(PromQueryFormat.HEATMAP))
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
        .cell_values(heatmaps.CellValues().unit(units.CountsPerSecond))
        .filter_values(heatmaps.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_value(VisibilityMode.NEVER)
        .show_tooltip()
        .show_legend()
    )


def table(
    title: str,
    description: str,
    *queries: Query,
    keys: Sequence[str],
    columns: Mapping[str, Column],
    links: Mapping[str, tuple[str, str]] | None = None,
    sort_by: tuple[str, Literal["asc", "desc"]] | None = None,
    span: int = 24,
    height: int = 8,
) -> Builder[Panel]:
    """Return the last values of queries as a table: a row for each set of ``keys``, a column for each query.

    Args:
        title: title of the panel.
        description: what good and bad values look like.
        queries: one for each column; their results have the labels ``keys``. A query without a name adds only labels.
        keys: labels that are the first columns, in this order.
        columns: style of the columns, by name.
        links: title and URL of the link in a key's cells, by key.
        sort_by: the column that sorts the rows, and the order.
        span: width in columns of the grid, which has 24.
        height: height in rows of the grid.
    """
    panel = tables.Panel().show_header(True).cell_height(TableCellHeight.SM)
    _common(panel, title, description, unit=units.Short, span=span, height=height)
    for number, query in enumerate(queries):
        panel.with_target(_target(Query(query.expr, ""), number).instant().format(PromQueryFormat.TABLE))
    # Grafana does not number the column of a single query.
    values = {
        (f"Value #{ascii_uppercase[number]}" if len(queries) > 1 else "Value"): query.name
        for number, query in enumerate(queries)
    }
    panel.with_transformation(DataTransformerConfig("merge", options={}))
    panel.with_transformation(
        DataTransformerConfig(
            "organize",
            options={
                "excludeByName": dict.fromkeys(
                    ["Time", *(value for value, name in values.items() if not name)], True
                ),
                "indexByName": {name: at for at, name in enumerate((*keys, *values))},
                "renameByName": {value: name for value, name in values.items() if name},
            },
        )
    )
    for name, column in columns.items():
        panel.override_by_name(name, _column(column))
    for key, (text, url) in (links or {}).items():
        panel.override_by_name(key, [DynamicConfigValue("links", [{"title": text, "url": url}])])
    if sort_by:
        name, order = sort_by
        panel.sort_by([common.TableSortByFieldState().display_name(name).desc(order == "desc")])
    return panel.no_value("-")


def _column(column: Column) -> list[DynamicConfigValue]:
    properties = [DynamicConfigValue("unit", column.unit)]
    if column.warning is not None or column.critical is not None:
        levels = steps(column.warning, column.critical).build()
        properties += [
            DynamicConfigValue("thresholds", levels),
            DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ]
    return properties


def variable(name: str, query: str, *, all_value: str = ".+") -> build.QueryVariable:
    """Return a variable with multiple choice; All is the pattern ``all_value`` instead of a long list of values."""
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(all_value)
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


TARGET_VARIABLES = (
    variable("job", "label_values(sqlalchemy_pool_exporter_build_info, job)"),
    variable("instance", 'label_values(sqlalchemy_pool_exporter_build_info{job=~"$job"}, instance)'),
)
POOL = variable(
    "pool", 'label_values(sqlalchemy_pool_info{job=~"$job", instance=~"$instance"}, pool)'
).description("A name can be that of several services' pools: choose the job as well.")
WORKER = variable(
    "worker",
    'label_values(sqlalchemy_pool_connections{job=~"$job", instance=~"$instance", pool=~"$pool"}, worker)',
    all_value=".*",
).description(
    "A worker process of those that share a directory. It narrows states; counters are of all workers."
)
DATABASE = variable(
    "database", 'label_values(sqlalchemy_pool_database_up{job=~"$job", instance=~"$instance"}, database)'
)


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[build.QueryVariable],
    rows: Mapping[str, Sequence[Builder[Panel]]],
) -> build.Dashboard:
    """Return a dashboard: its variables, and its panels in rows."""
    board = (
        build.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .timezone("browser")
        .refresh("1m")
        .link(
            build.DashboardLink("Pools")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            build.AnnotationQuery()
            .name("Firing alerts")
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(RED)
            .expr(ALERTS)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for one in variables:
        board.with_variable(one)
    for name, panels in rows.items():
        board.with_row(build.Row(name))
        for panel in panels:
            board.with_panel(panel)
    return board
