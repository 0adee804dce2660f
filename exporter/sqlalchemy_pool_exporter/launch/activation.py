# SPDX-License-Identifier: Apache-2.0
"""Waits in a process for the import of SQLAlchemy, and instruments every engine from then on.

A process that never imports SQLAlchemy, such as a shell script's ``python -c``, gets one entry in ``sys.meta_path`` and
loads nothing of this package but this module.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter import environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from logging import Logger
    from types import ModuleType

_SQLALCHEMY = "sqlalchemy"


def activate() -> None:
    """Instrument every engine of this process, if the environment asks for it. Does nothing the second time."""
    if not environment.is_on(environment.AUTO):
        return
    module = sys.modules.get(_SQLALCHEMY)
    if module is not None and hasattr(module, "create_engine"):
        _start()
    elif not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds SQLAlchemy as the others do, and starts once it is imported.

    Mutable state: whether it asks the others now.
    """

    def __init__(self) -> None:
        self._is_asking = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - of the interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return how SQLAlchemy is loaded; None for other modules."""
        if name != _SQLALCHEMY or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = find_spec(name)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """Loads a module as its own loader does, leaves no trace in it, and starts."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader makes of it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and start."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _start() -> None:
    import logging  # noqa: PLC0415 - as this whole function, only beside SQLAlchemy

    logger = logging.getLogger("sqlalchemy_pool_exporter")
    try:
        from sqlalchemy_pool_exporter.recording.every_engine import instrument_all  # noqa: PLC0415

        instrument_all(
            exclude=environment.words(environment.EXCLUDE),
            seen=_serve,
            meter_provider=_meter_provider(logger),
        )
    except Exception:
        logger.exception("the engines of this process are not instrumented")


def _meter_provider(logger: Logger) -> Any:
    """Return OpenTelemetry's provider, which passes all on to the one that the application sets, if it is asked for."""
    if not environment.is_on(environment.OTEL):
        return None
    try:
        from opentelemetry.metrics import get_meter_provider  # noqa: PLC0415 - only applications that use it have it
    except ImportError as error:
        logger.warning(
            "OpenTelemetry gets no metrics of the pools, since its API is not installed: %s", error
        )
        return None
    return get_meter_provider()


_served_in = 0  # the process that was asked to serve


def _serve() -> None:
    """Serve the metrics of this process, or stand by for another one, once it has an engine."""
    global _served_in  # noqa: PLW0603 - it is of the process
    where = os.environ.get(environment.SERVE, "")
    if not where or _served_in == os.getpid():
        return
    _served_in = os.getpid()
    import logging  # noqa: PLC0415 - as above

    from sqlalchemy_pool_exporter.recording.endpoint import serve  # noqa: PLC0415

    from .options import address as address_of  # noqa: PLC0415

    try:
        address = address_of(where)
        serve(address.port, *([address.host] if address.host else []))
    except (OSError, ValueError) as error:
        logging.getLogger("sqlalchemy_pool_exporter").warning("%s=%s: %s", environment.SERVE, where, error)
