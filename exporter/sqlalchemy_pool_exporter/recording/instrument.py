# SPDX-License-Identifier: Apache-2.0
"""``instrument()``: finds the pool, chooses its name, and returns the handle that undoes it."""

from __future__ import annotations

import math
import re
import warnings
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from sqlalchemy_pool_exporter import straight_lines
from sqlalchemy_pool_exporter.errors import TargetError
from sqlalchemy_pool_exporter.segment.block import MAX_OVERFLOW, PRE_PING, RECYCLE, SIZE, TIMEOUT
from sqlalchemy_pool_exporter.segment.identity import Identity, Variant
from sqlalchemy_pool_exporter.segment.store import BlockStore, store_in

from .flask_databases import instrument_database, is_flask_database, uninstrument_database
from .handle import Handle
from .instrumented import INSTRUMENTED
from .open_telemetry import export
from .options import options
from .recorder import Recorder
from .sqlalchemy_pool import configuration, dialect_of, logging_name

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .flask_databases import FlaskDatabase


def instrument(  # noqa: PLR0913 - keyword-only options
    target: Engine | AsyncEngine | Pool | FlaskDatabase,
    *,
    name: str | None = None,
    registry: CollectorRegistry = REGISTRY,
    directory: str | os.PathLike[str] | None = None,
    group_readable: bool | None = None,
    sites: bool | float | None = None,
    application: Sequence[str] | None = None,
    leak_after: float | None = None,
    leak_stack: bool = False,
    loop_lag: bool | None = None,
    request_deadline: float | None = None,
    trace_after: float | None = None,
    meter_provider: MeterProvider | None = None,
) -> Handle:
    """Record a connection pool and show its metrics in a registry.

    Connections that are already checked out and callers that are already waiting are counted from now on. A second
    call for the same pool returns the same handle, whatever its arguments; a first call for a pool that
    ``instrument_all()`` found replaces what that did.

    Args:
        target: an ``Engine``, an ``AsyncEngine`` (or a copy of either made by ``execution_options()``) or a ``Pool``;
            or the ``db`` of Flask-SQLAlchemy: then the engines of all its binds and applications, also those to come.
        name: the value of the label ``pool``. By default the pool's ``logging_name``, else database and host of the
            engine's URL, else the class of the pool; never a credential. Pools of one name share their series, which
            are sums. Pools of one default name that differ in class or limits get a suffix from what differs. The pool
            of a bind of Flask-SQLAlchemy has the bind's key after the name, as in ``orders-audit``.
        registry: where the metrics appear.
        directory: where a sidecar reads the metrics of this process. The default is the environment variable
            ``SQLALCHEMY_POOL_EXPORTER_DIR``; if that is not set, the metrics stay in memory. If the directory cannot be
            used, a warning is logged and the metrics stay in memory.
        group_readable: let the group of the segment file read it, for a sidecar that runs as another user. The default
            is ``SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE``; if that is not set, no.
        sites: record where the application checks out: the innermost frame of its own code, as
            ``module:function:line``. ``True`` does so at each checkout, ``False`` never, and a number between 0 and 1
            while at least this share of the pool's capacity is in use; other checkouts count as ``other``. The default
            is ``SQLALCHEMY_POOL_EXPORTER_SITES``; if that is not set, each checkout if leaks are looked for
            (``leak_after``), else 0.5, since to find a site takes time.
        application: prefixes of the application's modules, such as ``["orders", "billing"]``, if it is installed like a
            library; a minus, as in ``"-orders.db"``, excludes modules that only open connections for others. The
            default is ``SQLALCHEMY_POOL_EXPORTER_APPLICATION``, where commas separate them; if that is not set, the
            application is all code that is neither installed nor part of Python.
        leak_after: seconds; a connection that is held for longer is suspected of a leak, logged and counted. The
            default is ``SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER``; if that is not set, or 0, there are no suspects. 60 is a
            good start for an application that answers requests.
        leak_stack: log what the thread or task that checked a suspect out does now.
        loop_lag: record how late the event loops are that an asyncio engine runs in, by a timer in each. The default
            is ``SQLALCHEMY_POOL_EXPORTER_LOOP_LAG``; if that is not set, yes.
        request_deadline: seconds that a request of the application has; then a ``pool_timeout`` that is not shorter is
            a finding of the audit. The default is ``SQLALCHEMY_POOL_EXPORTER_REQUEST_DEADLINE``.
        trace_after: seconds; a checkout that waits for at least as long adds an event to the current span of
            OpenTelemetry, and its wait and a hold of that length get an exemplar, which names the trace. The default is
            ``SQLALCHEMY_POOL_EXPORTER_TRACE_AFTER``; if that is not set, 0.1. 0 for never. Nothing happens in an
            application that does not use OpenTelemetry.
        meter_provider: of OpenTelemetry, which gets the pool, too, by the semantic conventions; the same numbers of
            this process alone.

    Returns:
        A handle; ``close()`` undoes everything. The application need not keep it.

    Raises:
        TargetError: ``target`` is neither an engine nor a pool, ``name`` is not a string or is empty, ``registry``
            has no ``register()``, ``meter_provider`` has no ``get_meter()``, ``sites`` is no share, ``application`` is
            no list of prefixes, ``loop_lag`` is neither True nor False, or ``leak_after``, ``request_deadline`` or
            ``trace_after`` is no number of seconds.
    """
    if name is not None and (not isinstance(name, str) or not name):
        message = f"name must be a string that is not empty, got {type(name).__qualname__}"
        raise TargetError(message)
    recorded: dict[str, Any] = {
        "sites": sites,
        "application": application,
        "leak_after": leak_after,
        "leak_stack": leak_stack,
        "loop_lag": loop_lag,
        "request_deadline": request_deadline,
        "trace_after": trace_after,
    }
    if is_flask_database(target):
        check_destinations(registry, meter_provider)
        options(**recorded)
        each = partial(
            instrument,
            registry=registry,
            directory=directory,
            group_readable=group_readable,
            meter_provider=meter_provider,
            **recorded,
        )
        return instrument_database(target, name, each)
    engine = _engine_of(target)
    pool = _pool_of(target)
    check_destinations(registry, meter_provider)
    chosen = options(**recorded)
    with INSTRUMENTED.lock:
        present = _handle_of(pool)
        if present is not None and not present._gives_way:  # noqa: SLF001 - not part of the public handle
            present._known(engine)  # noqa: SLF001
            return present
        if present is not None:
            present.close()
        INSTRUMENTED.watch_forks()
        INSTRUMENTED.fold()
        _warn_if_unlocked()
        collector = INSTRUMENTED.collector_of(registry)
        store = store_in(directory, collector.own.memory, group_readable=group_readable)
        recorder = _new_recorder(pool, _name(name, pool, engine), store, **chosen)
        handle = Handle(recorder.identity, registry)
        handle._known(engine)  # noqa: SLF001
        handle._record(pool, recorder)  # noqa: SLF001
        if meter_provider is not None:
            export(meter_provider, collector.own, recorder.identity)
        return handle


def instrument_found(engine: Engine, **arguments: Any) -> Handle | None:
    """Instrument an engine that the application did not ask for; what it asks for later comes before.

    Returns:
        None if the pool is instrumented already.
    """
    with INSTRUMENTED.lock:
        present = _handle_of(engine.pool)
        if present is not None:
            present._known(engine)  # noqa: SLF001 - as above
            return None
        handle = instrument(engine, **arguments)
        handle._gives_way = True  # noqa: SLF001
        return handle


def check_destinations(registry: object, meter_provider: object) -> None:
    """Raise TargetError if metrics cannot appear there."""
    if not hasattr(registry, "register"):  # a restricted registry has no register() either
        message = f"registry must be a CollectorRegistry, got {type(registry).__qualname__}"
        raise TargetError(message)
    if meter_provider is not None and not hasattr(meter_provider, "get_meter"):
        message = f"meter_provider must be a MeterProvider, got {type(meter_provider).__qualname__}"
        raise TargetError(message)


def uninstrument(target: Engine | AsyncEngine | Pool | FlaskDatabase) -> None:
    """Undo ``instrument(target)``; do nothing if ``target`` is not instrumented.

    Raises:
        TargetError: ``target`` is neither an engine nor a pool.
    """
    if is_flask_database(target):
        uninstrument_database(target)
        return
    handle = _handle_of(_pool_of(target))
    if handle is not None:
        handle.close()


def _handle_of(pool: Pool) -> Handle | None:
    hooks = INSTRUMENTED.hooks_of(pool)
    return hooks.follower if hooks is not None and isinstance(hooks.follower, Handle) else None


def _engine_of(target: object) -> Engine | None:
    # An AsyncEngine is recognized by its sync_engine: an isinstance() would make every application import asyncio's
    # extension.
    engine = getattr(target, "sync_engine", target)
    return engine if isinstance(engine, Engine) else None


def _pool_of(target: object) -> Pool:
    engine = _engine_of(target)
    if engine is not None:
        return engine.pool
    if isinstance(target, Pool):
        return target
    message = f"instrument() takes an Engine, an AsyncEngine or a Pool, got {type(target).__qualname__}: "
    # Not repr(): people pass URLs, with the password in them.
    hint = "pass the engine that create_engine() returns" if isinstance(target, str) else _describe(target)
    raise TargetError(message + hint)


def _describe(target: object) -> str:
    if isinstance(target, type):
        return f"the class {target.__qualname__} and not an instance of it"
    if hasattr(target, "get_bind"):
        return "pass the engine the session is bound to, session.get_bind()"
    return f"pass the engine (an object of {type(target).__module__}.{type(target).__qualname__} has no pool)"


def _default_name(pool: Pool, engine: Engine | None) -> str:
    if engine is None:
        return type(pool).__name__
    url = engine.url
    database = PurePath(_public(url.database)).name or url.get_backend_name()
    host = _public(url.host)
    return f"{database}@{host}" if host else database


def _public(part: str | None) -> str:
    # People also write options here, after one of these characters, and an option can hold a password.
    return re.split(r"[?#;&=\s]", str(part or ""))[0].rpartition("@")[2]


def _name(given: str | None, pool: Pool, engine: Engine | None) -> tuple[str, bool]:
    """Return the name of a pool, and whether the application gave it."""
    given = given or logging_name(pool)
    name = given or _default_name(pool, engine)
    # The file name of a SQLite database can hold bytes that are not valid UTF-8; an exposition cannot.
    return name.encode("utf-8", "replace").decode(), given is not None


def _new_recorder(pool: Pool, name: tuple[str, bool], store: BlockStore, **arguments: Any) -> Recorder:
    limits = configuration(pool)
    dialect = dialect_of(pool)
    info = {
        "pool_class": type(pool).__name__,
        "dialect": str(getattr(dialect, "name", "")),
        "driver": str(getattr(dialect, "driver", "")),
    }
    text, is_given = name
    identity = Identity(text, None if is_given else _variant(type(pool).__name__, limits))
    return Recorder(identity, info=info, configuration=limits, store=store, **arguments)


def _variant(pool_class: str, limits: dict[int, float]) -> Variant:
    size, max_overflow, timeout, recycle = (
        None if math.isnan(limits[field]) else limits[field]
        for field in (SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE)
    )
    return Variant(pool_class, size, max_overflow, timeout, recycle, bool(limits[PRE_PING]))


def _warn_if_unlocked() -> None:
    if straight_lines.are_unlocked():
        warnings.warn(
            "this interpreter has no GIL and the source of this package is missing, so counts of simultaneous "
            "checkouts can be lost",
            RuntimeWarning,
            stacklevel=3,
        )
