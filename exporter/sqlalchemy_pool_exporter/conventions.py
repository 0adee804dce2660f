# SPDX-License-Identifier: Apache-2.0
"""The names of OpenTelemetry's semantic conventions for database connection pools."""

from __future__ import annotations

from typing import Final

# The release of the conventions that the names are of; there their stability is "development".
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "sqlalchemy_pool_exporter"
PREFIX: Final = "db.client.connection."
POOL_NAME: Final = f"{PREFIX}pool.name"
STATE: Final = f"{PREFIX}state"
# Unit and description of each metric that is no histogram.
NUMBERS: Final = {
    "count": ("{connection}", "The number of connections that are in this state."),
    "idle.max": ("{connection}", "The maximum number of idle connections."),
    "idle.min": ("{connection}", "The minimum number of idle connections."),
    "max": ("{connection}", "The maximum number of open connections."),
    "pending_requests": ("{request}", "The number of callers that wait for a connection."),
    "timeouts": ("{timeout}", "The number of callers that waited for pool_timeout."),
}
# Name, description, and the key of this project's metric. The unit is the second.
HISTOGRAMS: Final = (
    ("create_time", "The time it took to create a new connection.", "connect_seconds"),
    ("wait_time", "The time it took to obtain a connection from the pool.", "checkout_wait_seconds"),
    ("use_time", "The time between borrowing a connection and returning it.", "hold_seconds"),
)
