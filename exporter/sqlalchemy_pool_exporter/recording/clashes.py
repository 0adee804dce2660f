# SPDX-License-Identifier: Apache-2.0
"""Families whose names other metrics of a registry have already. A scrape with two of a name would be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    EXPORTER_METRICS,
    FLEET_METRICS,
    POOL_METRICS,
    PROCESS_METRICS,
    Kind,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# What prometheus_client adds to the name of a family, for the names that it reserves.
_SUFFIXES: Final[dict[Kind, tuple[str, ...]]] = {
    "counter": ("total", "created"),
    "gauge": (),
    "histogram": ("bucket", "sum", "count", "created"),
    "info": ("info",),
    "summary": ("sum", "count", "created"),
}
_METRICS: Final = (
    *POOL_METRICS,
    *EXPORTER_METRICS,
    *PROCESS_METRICS,
    *APPLICATION_METRICS,
    *FLEET_METRICS,
)
_FAMILIES: Final = {metric.family: metric.family for metric in _METRICS} | {
    f"{metric.family}_{suffix}": metric.family for metric in _METRICS for suffix in _SUFFIXES[metric.kind]
}


def clashing(registry: CollectorRegistry | None) -> frozenset[str]:
    """Return the families of this project that must not be shown in a registry, because of metrics of others."""
    # There is no other way to ask. This project's collectors reserve no names, so all of them are of others.
    taken: dict[str, Any] = getattr(registry, "_names_to_collectors", {})
    return frozenset(_FAMILIES[name] for name in _FAMILIES.keys() & taken.keys())
