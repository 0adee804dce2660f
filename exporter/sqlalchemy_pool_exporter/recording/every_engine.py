# SPDX-License-Identifier: Apache-2.0
"""``instrument_all()``: every engine of the process, those that exist and those to come.

SQLAlchemy asks a URL for the plugins of the engine that is made from it. That is the one place that every way to make
an engine goes through, whatever name ``create_engine`` was imported by, and it passes all arguments on unchanged: a
wrapper around ``Engine.__init__()`` would hide the arguments that SQLAlchemy reads from its signature.
"""

from __future__ import annotations

import functools
import gc
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Self, TypedDict

from prometheus_client import REGISTRY
from sqlalchemy.engine import URL, CreateEnginePlugin, Engine

from .exclusions import Exclusions, maker
from .instrument import check_destinations, instrument_found
from .options import options as checked

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Unpack

    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    from .handle import Handle

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class Options(TypedDict, total=False):
    """What ``instrument()`` takes for each engine."""

    registry: CollectorRegistry
    directory: str | os.PathLike[str] | None
    group_readable: bool | None
    sites: bool | float | None
    application: Sequence[str] | None
    leak_after: float | None
    leak_stack: bool
    loop_lag: bool | None
    request_deadline: float | None
    trace_after: float | None
    meter_provider: MeterProvider | None


class Instrumentation:
    """What ``instrument_all()`` did.

    Mutable state: the handles of the pools, until they are collected.
    """

    def __init__(
        self, exclusions: Exclusions, options: Options, seen: Callable[[], object] | None = None
    ) -> None:
        self._exclusions, self._options, self._seen = exclusions, options, seen
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()

    def uninstrument(self) -> None:
        """Restore every pool that this instrumented, and leave new engines alone. Does nothing the second time."""
        with _LOCK:
            if _PLUGGED.instrumentation is self:
                _PLUGGED.remove()
        for handle in list(self._handles):
            handle.close()

    def see(self, engine: Engine, module: str | None = None) -> None:
        """Instrument an engine, unless it is excluded. A failure is logged: the engine works all the same."""
        try:
            if self._exclusions.cover(engine, module):
                return
            handle = instrument_found(engine, **self._options)
            if handle is not None:
                self._handles.add(handle)
            if self._seen is not None:
                self._seen()
        except Exception:
            _logger.exception("an engine of %s is not instrumented", engine.url.get_backend_name())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.uninstrument()


class _Plugged:
    """The wrapper around the method by which SQLAlchemy finds the plugins of an engine.

    Mutable state: what ``instrument_all()`` did last, and the method before it.
    """

    def __init__(self) -> None:
        self.instrumentation: Instrumentation | None = None
        self._original: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None

    def put(self, instrumentation: Instrumentation) -> None:
        self.instrumentation = instrumentation
        original = self._original = URL._instantiate_plugins  # noqa: SLF001 - has no public name

        @functools.wraps(original)
        def _instantiate_plugins(url: URL, kwargs: Mapping[str, Any]) -> Any:
            new_url, plugins, rest = original(url, kwargs)
            # An older wrapper that others have wrapped adds nothing any more.
            if self.instrumentation is not None and self._wrapper is _instantiate_plugins:
                plugins = [*plugins, _Seen(self.instrumentation)]
            return new_url, plugins, rest

        self._wrapper = URL._instantiate_plugins = _instantiate_plugins  # type: ignore[assignment,method-assign] # noqa: SLF001

    def remove(self) -> None:
        self.instrumentation = None
        # If others have wrapped it meanwhile, the wrapper stays, and adds nothing.
        if URL.__dict__["_instantiate_plugins"] is self._wrapper:
            URL._instantiate_plugins = self._original  # type: ignore[assignment,method-assign] # noqa: SLF001


class _Seen(CreateEnginePlugin):
    """Tells of an engine once it is made."""

    def __init__(self, instrumentation: Instrumentation) -> None:
        self._instrumentation = instrumentation

    def engine_created(self, engine: Engine) -> None:
        self._instrumentation.see(engine, maker())


_LOCK = threading.Lock()
_PLUGGED = _Plugged()


def instrument_all(
    *, exclude: Iterable[str] = (), seen: Callable[[], object] | None = None, **options: Unpack[Options]
) -> Instrumentation:
    """Instrument every engine of this process: those that exist, and each new one when it is made.

    An engine that is instrumented already keeps its handle. A second call returns what the first one did, whatever its
    arguments. To find the engines that exist it looks once at each object of the heap; engines that ``gc.freeze()``
    hides are not found, so call it before. Children that are forked do the same.

    Args:
        exclude: patterns of engines that are left alone, with the wildcards of the shell: of the URL without user,
            password and query, such as ``sqlite:*``; of the pool's class, such as ``class:NullPool``; of the module
            that makes the engine, such as ``module:airflow.*``.
        seen: called for each engine that is not excluded, once it is instrumented.
        options: as of ``instrument()``, for each engine.

    Returns:
        What was done; ``uninstrument()`` undoes it. The application need not keep it.

    Raises:
        TargetError: an argument cannot be used.
        TypeError: there is no such argument.
    """
    exclusions = Exclusions(exclude)
    _check(options)
    with _LOCK:
        if _PLUGGED.instrumentation is not None:
            return _PLUGGED.instrumentation
        instrumentation = Instrumentation(exclusions, options, seen)
        _PLUGGED.put(instrumentation)
    for engine in _engines():
        instrumentation.see(engine)
    return instrumentation


def _check(options: Options) -> None:
    rest: dict[str, Any] = dict(options)
    check_destinations(rest.pop("registry", REGISTRY), rest.pop("meter_provider", None))
    for name in ("directory", "group_readable"):
        rest.pop(name, None)
    checked(**rest)  # raises TypeError for an option that does not exist


def _engines() -> list[Engine]:
    # The class is asked of the object's type: a proxy that an application makes may compute ``__class__``.
    return [one for one in gc.get_objects() if issubclass(type(one), Engine)]
