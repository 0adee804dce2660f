# SPDX-License-Identifier: Apache-2.0
"""Put panels, variables, links and the marks of alerts together to a dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from .panels import DATASOURCE, RED
from .promql import ALERTS, ALERTS_OF_FLEET, FLEET, TARGET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

TAG = "sqlalchemy-pool"


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


# Targets of a cluster or namespace have such a label, others do not; `.*` matches an absent label, too.
CLUSTER = variable("cluster", "label_values(sqlalchemy_pool_exporter_build_info, cluster)", all_value=".*")
NAMESPACE = variable(
    "namespace",
    'label_values(sqlalchemy_pool_exporter_build_info{cluster=~"$cluster"}, namespace)',
    all_value=".*",
)
JOB = variable("job", f"label_values(sqlalchemy_pool_exporter_build_info{{{FLEET}}}, job)")
INSTANCE = variable(
    "instance", f'label_values(sqlalchemy_pool_exporter_build_info{{{FLEET}, job=~"$job"}}, instance)'
)
TARGET_VARIABLES = (CLUSTER, NAMESPACE, JOB, INSTANCE)
POOL = variable("pool", f"label_values(sqlalchemy_pool_info{{{TARGET}}}, pool)").description(
    "A name can be that of several services' pools: choose the job as well."
)
WORKER = variable(
    "worker",
    f'label_values(sqlalchemy_pool_connections{{{TARGET}, pool=~"$pool"}}, worker)',
    all_value=".*",
).description(
    "A worker process of those that share a directory. It narrows states; counters are of all workers."
)
DATABASE = variable("database", f"label_values(sqlalchemy_pool_database_up{{{TARGET}}}, database)")


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
            .expr(ALERTS if INSTANCE in variables else ALERTS_OF_FLEET)
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
