# SPDX-License-Identifier: Apache-2.0
"""Build tables whose columns fit the panel, in one common style."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import TableCellHeight
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, DynamicConfigValue
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .panels import Query, steps, style, target, without_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

# Pixels of the columns of labels. Grafana gives a column without a width 150 at least, and lets the last ones of a wide
# table out of sight.
KEY_WIDTHS = {
    "alertname": 250,
    "cluster": 90,
    "command": 230,
    "database": 130,
    "dialect": 90,
    "driver": 90,
    "hot_path": 100,
    "instance": 150,
    "job": 120,
    "namespace": 100,
    "pid": 80,
    "pool": 140,
    "pool_class": 170,
    "program": 110,
    "python": 80,
    "rule": 220,
    "site": 250,
    "sqlalchemy": 90,
    "started": 170,
    "version": 90,
    "worker": 75,
}


@dataclass(frozen=True, slots=True)
class Column:
    """The style of a table column: its unit, its width in pixels, the values from which it is orange and red.

    ``mappings`` are values that are shown as a text in a colour.
    """

    unit: str = units.Short
    warning: float | None = None
    critical: float | None = None
    width: int = 90
    mappings: Mapping[float, tuple[str, str]] | None = None


def table(
    title: str,
    description: str,
    *queries: Query,
    keys: Sequence[str],
    columns: Mapping[str, Column],
    links: Mapping[str, tuple[str, str]] | None = None,
    sort_by: Sequence[str] = (),
    last_keys: Sequence[str] = (),
    span: int = 24,
    height: int = 8,
) -> Builder[Panel]:
    """Return the last values of queries as a table: a row for each set of keys, a column for each query.

    The first key takes what room the other columns leave.

    Args:
        title: title of the panel.
        description: what good and bad values look like.
        queries: one for each column; their results have the labels ``keys``. A query without a name adds only labels.
        keys: labels that are the first columns, in this order. On a phone, only they and two or three more are seen.
        columns: style of the columns, by name.
        links: title and URL of the link in a key's cells, by key.
        sort_by: the columns that sort the rows, the largest first; equal ones by the next column.
        last_keys: labels that are the last columns.
        span: width in columns of the grid, which has 24.
        height: height in rows of the grid.
    """
    panel = tables.Panel().show_header(True).cell_height(TableCellHeight.SM)
    style(panel, title, description, unit=units.Short, span=span, height=height)
    for number, query in enumerate(queries):
        panel.with_target(target(Query(query.expr, ""), number).instant().format(PromQueryFormat.TABLE))
    for transformation in _transformations(queries, keys, last_keys):
        panel.with_transformation(transformation)
    properties = {key: [_width(key, is_flexible=key == keys[0])] for key in (*keys, *last_keys)}
    properties |= {name: _column(column) for name, column in columns.items()}
    for key, (text, url) in (links or {}).items():
        properties[key].append(DynamicConfigValue("links", [{"title": text, "url": url}]))
    for name, of_name in properties.items():
        panel.override_by_name(name, of_name)
    panel.sort_by([common.TableSortByFieldState().display_name(name).desc(True) for name in sort_by])
    return panel.no_value("-")


def _transformations(
    queries: Sequence[Query], keys: Sequence[str], last_keys: Sequence[str]
) -> list[DataTransformerConfig]:
    """Merge the results into one row for each set of labels, and order, name and leave out the columns."""
    # Grafana does not number the column of a single query.
    values = {
        (f"Value #{ascii_uppercase[number]}" if len(queries) > 1 else "Value"): query.name
        for number, query in enumerate(queries)
    }
    order = (*keys, *values, *last_keys)
    excluded = ["Time", *(value for value, name in values.items() if not name)]
    options = {
        "excludeByName": dict.fromkeys(excluded, True),
        "indexByName": {name: at for at, name in enumerate(order)},
        "renameByName": {value: name for value, name in values.items() if name},
    }
    return [DataTransformerConfig("merge", options={}), DataTransformerConfig("organize", options=options)]


def _width(key: str, *, is_flexible: bool) -> DynamicConfigValue:
    return DynamicConfigValue("custom.minWidth" if is_flexible else "custom.width", KEY_WIDTHS[key])


def _column(column: Column) -> list[DynamicConfigValue]:
    is_judged = column.warning is not None or column.critical is not None
    properties = [
        DynamicConfigValue("unit", column.unit),
        DynamicConfigValue("custom.width", column.width),
    ]
    if is_judged:
        levels = steps(column.warning, column.critical).build()
        properties.append(DynamicConfigValue("thresholds", levels))
    texts = [_texts(column.mappings)] if column.mappings else []
    if is_judged or texts:
        # A cell without a value would have the colour of the lowest threshold, which is green.
        properties += [DynamicConfigValue("mappings", [without_value("-"), *texts]), _COLORED]
    return properties


_COLORED = DynamicConfigValue("custom.cellOptions", {"type": "color-text"})


def _texts(mappings: Mapping[float, tuple[str, str]]) -> dict[str, Any]:
    options = {
        f"{value:g}": {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(mappings.items())
    }
    return {"type": "value", "options": options}
