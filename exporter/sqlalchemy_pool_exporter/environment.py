# SPDX-License-Identifier: Apache-2.0
"""Names of the environment variables that the application and the sidecar read."""

from __future__ import annotations

import os
from typing import Final

CONFIG: Final = "SQLALCHEMY_POOL_EXPORTER_CONFIG"
DIRECTORY: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
GROUP_READABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"
LISTEN_ADDRESS: Final = "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS"
LOG_LEVEL: Final = "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL"
SIDECAR: Final = "SQLALCHEMY_POOL_EXPORTER_SIDECAR"


def is_on(name: str) -> bool:
    """Return whether a variable switches something on."""
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
