# SPDX-License-Identifier: Apache-2.0
"""Which engines ``instrument_all()`` leaves alone."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import URL

from sqlalchemy_pool_exporter.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from sqlalchemy.engine import Engine

_CLASS: Final = "class:"
_MODULE: Final = "module:"
# What makes engines on behalf of others, or wraps what does.
_MAKERS: Final = ("sqlalchemy.", "opentelemetry.", f"{__name__.partition('.')[0]}.")


class Exclusions:
    """Patterns of engines, each with the wildcards of the shell.

    ``class:NullPool`` is the class of the pool, or one that it is derived from; ``module:airflow.*`` is the module that
    makes the engine, and means nothing for an engine that exists already; anything else is compared with the URL,
    without user, password and query.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Take the patterns.

        Raises:
            TargetError: they are no texts, or one is empty.
        """
        # A text is a sequence of texts, too: each of its letters would be a pattern.
        given = [patterns] if isinstance(patterns, str) else patterns
        try:
            self._patterns = tuple(given)
        except TypeError as error:
            raise TargetError(f"exclude must be a list of patterns, got {patterns!r}") from error
        for pattern in self._patterns:
            if not isinstance(pattern, str) or not pattern.removeprefix(_CLASS).removeprefix(_MODULE):
                raise TargetError(
                    f"exclude must be a list of patterns, such as ['sqlite:*'], got {pattern!r}"
                )

    def cover(self, engine: Engine, module: str | None) -> bool:
        """Return whether an engine is left alone.

        Args:
            engine: the engine.
            module: the name of the module that made it, if it is known.
        """
        return any(_matches(pattern, engine, module) for pattern in self._patterns)


def maker() -> str | None:
    """Return the name of the module that makes an engine now."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to look at a caller
    while frame is not None:
        # SQLAlchemy makes functions of texts, which have no module.
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and not f"{name}.".startswith(_MAKERS):
            return name
        frame = frame.f_back
    return None


def _matches(pattern: str, engine: Engine, module: str | None) -> bool:
    if pattern.startswith(_CLASS):
        names = (one.__name__ for one in type(engine.pool).__mro__)
        return any(fnmatchcase(name, pattern.removeprefix(_CLASS)) for name in names)
    if pattern.startswith(_MODULE):
        return module is not None and fnmatchcase(module, pattern.removeprefix(_MODULE))
    return fnmatchcase(_shown(engine.url), pattern)


def _shown(url: URL) -> str:
    bare = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return bare.render_as_string()
