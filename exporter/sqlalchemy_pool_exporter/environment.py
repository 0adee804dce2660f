# SPDX-License-Identifier: Apache-2.0
"""Names of the environment variables that the application and the sidecar read."""

from __future__ import annotations

import math
import os
from typing import Final

APPLICATION: Final = "SQLALCHEMY_POOL_EXPORTER_APPLICATION"
CONFIG: Final = "SQLALCHEMY_POOL_EXPORTER_CONFIG"
DIRECTORY: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
GROUP_READABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"
LEAK_AFTER: Final = "SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER"
LISTEN_ADDRESS: Final = "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS"
LOG_LEVEL: Final = "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL"
LOOP_LAG: Final = "SQLALCHEMY_POOL_EXPORTER_LOOP_LAG"
PASSWORD: Final = "SQLALCHEMY_POOL_EXPORTER_PASSWORD"  # noqa: S105 - its name
REQUEST_DEADLINE: Final = "SQLALCHEMY_POOL_EXPORTER_REQUEST_DEADLINE"
SIDECAR: Final = "SQLALCHEMY_POOL_EXPORTER_SIDECAR"
SITES: Final = "SQLALCHEMY_POOL_EXPORTER_SITES"
TOKEN: Final = "SQLALCHEMY_POOL_EXPORTER_TOKEN"  # noqa: S105 - its name


def is_on(name: str) -> bool:
    """Return whether a variable switches something on."""
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def is_off(name: str) -> bool:
    """Return whether a variable switches something off that is on by default."""
    return os.environ.get(name, "").lower() in {"0", "false", "no", "off"}


def share(name: str) -> bool | float | None:
    """Return whether a variable switches something on or off, or the share of something that it says.

    Returns:
        None if the variable is not set; NaN if it says none of these.
    """
    given = os.environ.get(name, "").strip()
    if not given:
        return None
    if is_on(name) or is_off(name):
        return is_on(name)
    try:
        return float(given)
    except ValueError:
        return math.nan


def words(name: str) -> tuple[str, ...]:
    """Return the words of a variable, which commas separate."""
    return tuple(filter(None, map(str.strip, os.environ.get(name, "").split(","))))
