# SPDX-License-Identifier: Apache-2.0
"""A dashboard with a panel of each type and without faults, which the tests break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.grafana import Board, Panel

NAME = "small"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTOR = 'job=~"$job"'
LEVELS = [
    {"value": None, "color": "text"},
    {"value": 0, "color": "green"},
    {"value": 1000, "color": "red"},
]


def small() -> Board:
    """Return the dashboard."""
    panels = [stat(), timeseries(), table(), heatmap()]
    for number, panel in enumerate(panels, 1):
        panel |= {
            "id": number,
            "datasource": SOURCE,
            "transparent": False,
            "gridPos": {"x": 0, "y": 8 * (number - 1), "w": 24, "h": 8},
        }
    return {
        "uid": "small",
        "title": "Small",
        "editable": False,
        "graphTooltip": 1,
        "schemaVersion": 36,
        "panels": panels,
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "id": "",
                    "type": "query",
                    "name": "job",
                    "label": "Job",
                    "query": "label_values(up, job)",
                    "datasource": SOURCE,
                    "hide": 0,
                    "skipUrlSync": False,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".+",
                }
            ]
        },
    }


def stat() -> Panel:
    """Return a stat that is grey without data and asks for a value that is not old."""
    return {
        "type": "stat",
        "title": "Waiting",
        "targets": [_target(f"sum(sqlalchemy_pool_pending_checkouts{{{SELECTOR}}})", is_instant=True)],
        "transformations": [],
        "options": {
            "graphMode": "area",
            "colorMode": "value",
            "justifyMode": "auto",
            "textMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
        },
        "fieldConfig": {
            "defaults": {
                "unit": "short",
                "noValue": "not seen",
                "color": {"mode": "thresholds"},
                "thresholds": {"mode": "absolute", "steps": LEVELS},
            },
            "overrides": [],
        },
    }


def timeseries() -> Panel:
    """Return a graph with an override by query."""
    return {
        "type": "timeseries",
        "title": "In use",
        "targets": [_target(f"sum by (pool) (sqlalchemy_pool_connections{{{SELECTOR}}})", "{{pool}}")],
        "transformations": [],
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {
            "defaults": {
                "unit": "short",
                "min": 0,
                "custom": {"drawStyle": "line", "lineWidth": 1, "axisSoftMax": 1},
            },
            "overrides": [
                _override("byFrameRefID", "A", "custom.lineStyle", {"fill": "dash", "dash": [10, 10]})
            ],
        },
    }


def table() -> Panel:
    """Return a table with a renamed and coloured column, and a link that leads back here."""
    return {
        "type": "table",
        "title": "Pools",
        "targets": [
            _target(f"sum by (pool) (sqlalchemy_pool_connections{{{SELECTOR}}})", is_instant=True)
            | {"format": "table"}
        ],
        "transformations": [
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {"pool": 0, "Value": 1},
                    "renameByName": {"Value": "Connections"},
                },
            }
        ],
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "frameIndex": 0,
            "showTypeIcons": False,
            "sortBy": [{"displayName": "Connections", "desc": True}],
        },
        "fieldConfig": {
            "defaults": {"noValue": "-"},
            "overrides": [
                _override("byName", "Connections", "unit", "short"),
                _override(
                    "byName",
                    "pool",
                    "links",
                    [{"title": "here", "url": "/d/sqlalchemy-pool-pool?var-pool=x"}],
                ),
            ],
        },
    }


def heatmap() -> Panel:
    """Return a heatmap."""
    rate = f"rate(sqlalchemy_pool_checkout_wait_seconds_bucket{{{SELECTOR}}}[$__rate_interval])"
    return {
        "type": "heatmap",
        "title": "Wait",
        "targets": [_target(f"sum by (le) ({rate})", "{{le}}") | {"format": "heatmap"}],
        "transformations": [],
        "options": {
            "calculate": False,
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "fill": "dark-orange",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": False,
            },
            "yAxis": {"unit": "s"},
            "showValue": "never",
            "legend": {"show": True},
            "tooltip": {"show": True},
            "exemplars": {"color": "red"},
        },
        "fieldConfig": {"defaults": {}, "overrides": []},
    }


def _target(expr: str, legend: str = "", *, is_instant: bool = False) -> dict[str, Any]:
    return {
        "refId": "A",
        "expr": expr,
        "legendFormat": legend,
        "instant": is_instant,
        "range": not is_instant,
        "datasource": SOURCE,
    }


def _override(matcher: str, options: object, name: str, value: object) -> dict[str, Any]:
    return {"matcher": {"id": matcher, "options": options}, "properties": [{"id": name, "value": value}]}
