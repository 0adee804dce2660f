# SPDX-License-Identifier: Apache-2.0
"""Make SQLAlchemy connection pools visible to Prometheus."""

from __future__ import annotations

from .endpoint import Server, aiohttp_handler, asgi_app, serve, wsgi_app
from .errors import ConfigError, EndpointError, PoolExporterError, SegmentError, TargetError
from .instrumentation import Handle, instrument, uninstrument

__all__ = [
    "ConfigError",
    "EndpointError",
    "Handle",
    "PoolExporterError",
    "SegmentError",
    "Server",
    "TargetError",
    "aiohttp_handler",
    "asgi_app",
    "instrument",
    "serve",
    "uninstrument",
    "wsgi_app",
]
