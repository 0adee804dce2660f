# SPDX-License-Identifier: Apache-2.0
"""Names of the environment variables that the application and the sidecar read."""

from __future__ import annotations

from typing import Final

CONFIG: Final = "SQLALCHEMY_POOL_EXPORTER_CONFIG"
DIRECTORY: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
GROUP_READABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"
LISTEN_ADDRESS: Final = "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS"
LOG_LEVEL: Final = "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL"
