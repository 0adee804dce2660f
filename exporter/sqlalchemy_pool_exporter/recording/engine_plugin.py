# SPDX-License-Identifier: Apache-2.0
"""The engine plugin: ``create_engine("postgresql://…?plugin=pool_exporter")`` or ``plugins=["pool_exporter"]``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import CreateEnginePlugin

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.errors import TargetError

from .instrument import instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import URL, Engine

_PREFIX: Final = "pool_exporter_"


class PoolExporterPlugin(CreateEnginePlugin):
    """Instruments the pool of the engine that it is a plugin of.

    The options of ``instrument()`` are arguments of ``create_engine()`` or in the query of the URL, each with
    ``pool_exporter_`` before its name: ``?plugin=pool_exporter&pool_exporter_name=orders&pool_exporter_sites=on``.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        """Take the options from both.

        Raises:
            TargetError: one does not exist, or means nothing.
        """
        self._in_url = [key for key in url.query if key.startswith(_PREFIX)]
        self._options = _parsed({key: url.query[key] for key in self._in_url})
        for key in [key for key in kwargs if key.startswith(_PREFIX)]:
            self._options[key.removeprefix(_PREFIX)] = kwargs.pop(key)

    def update_url(self, url: URL) -> URL:
        """Return the URL without the options, which the driver does not know."""
        return url.difference_update_query(self._in_url)

    def engine_created(self, engine: Engine) -> None:
        """Instrument the engine.

        Raises:
            TargetError: an option cannot be used.
        """
        try:
            instrument(engine, **self._options)
        except TypeError as error:
            if isinstance(error, TargetError):
                raise
            raise TargetError(f"the plugin pool_exporter: {error}") from error


def _parsed(query: Mapping[str, str | tuple[str, ...]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, text in query.items():
        name = key.removeprefix(_PREFIX)
        if name not in _TEXTS:
            raise TargetError(
                f"the URL has no option {key!r}; it has {', '.join(map(_PREFIX.__add__, _TEXTS))}"
            )
        if not isinstance(text, str):
            raise TargetError(f"the URL has {key} more than once")
        try:
            options[name] = _TEXTS[name](text)
        except ValueError as error:
            raise TargetError(f"the URL has {key}={text!r}, which means nothing") from error
    return options


def _switch(text: str) -> bool:
    switch = environment.switch(text)
    if switch is None:
        raise ValueError(text)
    return switch


def _share(text: str) -> bool | float:
    switch = environment.switch(text)
    return _seconds(text) if switch is None else switch


def _seconds(text: str) -> float:
    seconds = float(text)
    if math.isnan(seconds):
        raise ValueError(text)
    return seconds


_TEXTS: Final[dict[str, Callable[[str], Any]]] = {
    "name": str,
    "directory": str,
    "group_readable": _switch,
    "sites": _share,
    "application": lambda text: text.split(","),
    "leak_after": _seconds,
    "leak_stack": _switch,
    "loop_lag": _switch,
    "request_deadline": _seconds,
    "trace_after": _seconds,
}
