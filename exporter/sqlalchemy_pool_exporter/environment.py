# SPDX-License-Identifier: Apache-2.0
"""Names of the environment variables that the application and the sidecar read."""

from __future__ import annotations

import math
import os
from typing import Final

APPLICATION: Final = "SQLALCHEMY_POOL_EXPORTER_APPLICATION"
AUTO: Final = "SQLALCHEMY_POOL_EXPORTER_AUTO"
CONFIG: Final = "SQLALCHEMY_POOL_EXPORTER_CONFIG"
DIRECTORY: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
EXCLUDE: Final = "SQLALCHEMY_POOL_EXPORTER_EXCLUDE"
GROUP_READABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"
LEAK_AFTER: Final = "SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER"
LISTEN_ADDRESS: Final = "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS"
LOG_LEVEL: Final = "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL"
LOOP_LAG: Final = "SQLALCHEMY_POOL_EXPORTER_LOOP_LAG"
OTEL: Final = "SQLALCHEMY_POOL_EXPORTER_OTEL"
OTLP_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"  # OpenTelemetry's own
PASSWORD: Final = "SQLALCHEMY_POOL_EXPORTER_PASSWORD"  # noqa: S105 - its name
REQUEST_DEADLINE: Final = "SQLALCHEMY_POOL_EXPORTER_REQUEST_DEADLINE"
SERVE: Final = "SQLALCHEMY_POOL_EXPORTER_SERVE"
SIDECAR: Final = "SQLALCHEMY_POOL_EXPORTER_SIDECAR"
SITES: Final = "SQLALCHEMY_POOL_EXPORTER_SITES"
TOKEN: Final = "SQLALCHEMY_POOL_EXPORTER_TOKEN"  # noqa: S105 - its name
TRACE_AFTER: Final = "SQLALCHEMY_POOL_EXPORTER_TRACE_AFTER"


def switch(text: str) -> bool | None:
    """Return whether a text means on or off; None if it means neither."""
    lower = text.lower()
    if lower in {"1", "true", "yes", "on"}:
        return True
    return False if lower in {"0", "false", "no", "off"} else None


def is_on(name: str) -> bool:
    """Return whether a variable switches something on."""
    return switch(os.environ.get(name, "")) is True


def is_off(name: str) -> bool:
    """Return whether a variable switches something off that is on by default."""
    return switch(os.environ.get(name, "")) is False


def share(name: str) -> bool | float | None:
    """Return whether a variable switches something on or off, or the share of something that it says.

    Returns:
        None if the variable is not set; NaN if it says none of these.
    """
    given = os.environ.get(name, "").strip()
    return share_of(given) if given else None


def share_of(given: str) -> bool | float:
    """Return whether a text switches something on or off, or the share that it says; NaN if it says none of these."""
    on_or_off = switch(given)
    if on_or_off is not None:
        return on_or_off
    try:
        return float(given)
    except ValueError:
        return math.nan


def words(name: str) -> tuple[str, ...]:
    """Return the words of a variable, which commas separate."""
    return tuple(filter(None, map(str.strip, os.environ.get(name, "").split(","))))
