# SPDX-License-Identifier: Apache-2.0
"""Make SQLAlchemy connection pools visible to Prometheus."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import straight_lines

if TYPE_CHECKING:
    from .errors import ConfigError, EndpointError, PoolExporterError, SegmentError, TargetError
    from .recording.classification import Failure, classify
    from .recording.endpoint import Server, serve
    from .recording.every_engine import Instrumentation, instrument_all
    from .recording.handle import Handle
    from .recording.instrument import instrument, uninstrument
    from .recording.labels import label
    from .recording.mounts import aiohttp_handler, asgi_app, wsgi_app
    from .recording.routes import asgi_labels, wsgi_labels

__all__ = [
    "ConfigError",
    "EndpointError",
    "Failure",
    "Handle",
    "Instrumentation",
    "PoolExporterError",
    "SegmentError",
    "Server",
    "TargetError",
    "aiohttp_handler",
    "asgi_app",
    "asgi_labels",
    "classify",
    "instrument",
    "instrument_all",
    "label",
    "serve",
    "uninstrument",
    "wsgi_app",
    "wsgi_labels",
]

# Each public name is loaded on its first use (PEP 562), because the command line and the sidecar also import this
# package and must not load SQLAlchemy.
_MODULES = {
    "errors": ("ConfigError", "EndpointError", "PoolExporterError", "SegmentError", "TargetError"),
    "recording.classification": ("Failure", "classify"),
    "recording.endpoint": ("Server", "serve"),
    "recording.every_engine": ("Instrumentation", "instrument_all"),
    "recording.handle": ("Handle",),
    "recording.instrument": ("instrument", "uninstrument"),
    "recording.labels": ("label",),
    "recording.mounts": ("aiohttp_handler", "asgi_app", "wsgi_app"),
    "recording.routes": ("asgi_labels", "wsgi_labels"),
}

# Before any module that records is loaded.
straight_lines.lock()


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
