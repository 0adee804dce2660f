# SPDX-License-Identifier: Apache-2.0
"""``instrument(db)`` of Flask-SQLAlchemy: the engines of all binds of all applications, also those that come later.

Flask-SQLAlchemy makes the engines of an application in ``init_app()``, often after ``db`` was instrumented. So that
method is wrapped, on the instance. The package itself is never imported: without it there is no such object.
"""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy_pool_exporter.segment.stuck import STUCK_AFTER

from .handle import Handle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import Engine
    from typing_extensions import TypeIs

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class FlaskDatabase(Protocol):
    """The part of ``flask_sqlalchemy.SQLAlchemy`` that is needed here."""

    @property
    def engines(self) -> Mapping[str | None, Engine]:
        """The engines of the current application, by bind."""

    def init_app(self, app: Any) -> Any:
        """Make the engines of an application."""


class DatabaseHandle(Handle):
    """The pools of a Flask-SQLAlchemy database: those of each bind of each of its applications.

    Mutable state: the handles of the pools, and whether new engines are instrumented.
    """

    __slots__ = ("_database", "_given_name", "_handles", "_instrument", "_is_closed", "_wrapper")

    def __init__(self, database: FlaskDatabase, name: str | None, instrument: Callable[..., Handle]) -> None:
        self._database = weakref.ref(database)
        self._given_name, self._instrument = name, instrument
        self._handles: list[Handle] = []
        self._is_closed = False
        wrapper = self._wrapped(database)
        self._wrapper = weakref.ref(wrapper)  # which refers to the database, and must not keep it alive
        database.init_app = wrapper  # type: ignore[method-assign]

    @property
    def name(self) -> str:
        """The names of the pools, with commas between them; of those that there are by now."""
        return ", ".join(dict.fromkeys(one.name for one in self._open))

    @property
    def closed(self) -> bool:
        """Whether neither the pools nor new ones are instrumented."""
        return self._is_closed and not self._open

    def healthy(self, *, stuck_after: float = STUCK_AFTER) -> bool:
        """Return whether none of the pools is stuck in this process; see ``Handle.healthy()``."""
        return all(one.healthy(stuck_after=stuck_after) for one in self._open)

    def close(self) -> None:
        """Restore every pool and the database exactly. Does nothing the second time."""
        self._is_closed = True
        database = self._database()
        if database is not None:
            _HANDLES.pop(database, None)
            if vars(database).get("init_app") is self._wrapper():
                del database.init_app
        for handle in self._open:
            handle.close()

    @property
    def _open(self) -> list[Handle]:
        return [one for one in self._handles if not one.closed]

    def __repr__(self) -> str:
        names = " ".join(repr(name) for name in dict.fromkeys(one.name for one in self._open))
        return f"<{type(self).__name__} pools={names or None}{' closed' if self.closed else ''}>"

    def see_all(self) -> None:
        """Instrument the engines that the database has now."""
        database = self._database()
        if database is not None:
            for bind, engine in _engines(database):
                self._see(bind, engine)

    def _see(self, bind: str | None, engine: Engine) -> None:
        name = self._given_name
        if name is not None and bind is not None:
            name = f"{name}-{bind}"
        handle = self._instrument(engine, name=name)
        if handle not in self._handles:
            self._handles = [*self._open, handle]

    def _wrapped(self, database: FlaskDatabase) -> Any:
        original = database.init_app
        self_ref = weakref.ref(self)

        @functools.wraps(original)
        def init_app(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            handle = self_ref()
            if handle is not None and not handle.closed:
                try:
                    handle.see_all()
                except Exception:
                    _logger.exception("the engines of %r are not instrumented", type(database).__name__)
            return result

        return init_app


# Mutable state: the handle of each database that is instrumented.
_HANDLES: weakref.WeakKeyDictionary[FlaskDatabase, DatabaseHandle] = weakref.WeakKeyDictionary()


def is_flask_database(target: object) -> TypeIs[FlaskDatabase]:
    """Return whether an object is a ``flask_sqlalchemy.SQLAlchemy``."""
    kind = getattr(sys.modules.get("flask_sqlalchemy"), "SQLAlchemy", None)
    return isinstance(kind, type) and isinstance(target, kind)


def instrument_database(
    database: FlaskDatabase, name: str | None, instrument: Callable[..., Handle]
) -> Handle:
    """Instrument the engines of a database, those that there are and those to come.

    Args:
        database: of Flask-SQLAlchemy.
        name: of the default engine's pool; that of a bind has the bind's key after it, such as ``orders-audit``.
        instrument: instruments an engine; it takes the name of its pool.
    """
    handle = _HANDLES.get(database)
    if handle is None:
        handle = _HANDLES[database] = DatabaseHandle(database, name, instrument)
        handle.see_all()
    return handle


def uninstrument_database(database: FlaskDatabase) -> None:
    """Undo ``instrument_database()``."""
    handle = _HANDLES.get(database)
    if handle is not None:
        handle.close()


def _engines(database: FlaskDatabase) -> Iterator[tuple[str | None, Engine]]:
    """Yield the engines of all applications, or at least of the current one, with their binds."""
    by_application = getattr(database, "_app_engines", None)
    if by_application is not None:
        for engines in list(by_application.values()):
            yield from _default_first(engines)
        return
    try:
        yield from _default_first(database.engines)
    except RuntimeError:  # there is no current application, or it has no engines yet
        return


def _default_first(engines: Mapping[str | None, Engine]) -> list[tuple[str | None, Engine]]:
    return sorted(engines.items(), key=lambda item: item[0] is not None)
