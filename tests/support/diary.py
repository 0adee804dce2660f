# SPDX-License-Identifier: Apache-2.0
"""Everything that an application could notice: results, exceptions, events, log records and warnings."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

import sqlalchemy_pool_exporter
from tests.support.database import Database, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine


PACKAGE = str(Path(sqlalchemy_pool_exporter.__file__).parent)
EVENTS = (
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)


class Diary(logging.Handler):
    """Everything an application could notice."""

    def __init__(self, database: Database) -> None:
        super().__init__(logging.DEBUG)
        self.database = database
        self.lines: list[str] = []

    def note(self, *what: object) -> None:
        # Addresses differ between runs: those in hexadecimal, and SingletonThreadPool's after `id:`.
        self.lines.append(re.sub(r"0x[0-9a-f]+|id:\d+", "…", " ".join(map(str, what))))

    def attempt(self, act: Callable[[], Any]) -> Any:
        """Return what an act returns, or None and a note of what it raised."""
        try:
            result = act()
        except BaseException as error:  # noqa: BLE001 - the diary notes every exception
            self.note("raised", *told(error))
            return None
        self.note("returned", type(result).__name__)
        return result

    def listen(self, engine: Engine) -> None:
        """Add a listener that notes the event to each event."""
        for name in EVENTS:
            event.listen(engine, name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        def listener(*arguments: object) -> None:
            self.note("event", name, *map(kind, arguments))

        return listener

    def emit(self, record: logging.LogRecord) -> None:
        self.note("log", record.levelname, record.getMessage())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Note SQLAlchemy's log and warnings during the block."""
        logger = logging.getLogger("sqlalchemy.pool")
        level, propagate = logger.level, logger.propagate
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
            self.lines += [f"warning {warning.category.__name__} {warning.message}" for warning in caught]
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


def kind(argument: object) -> str:
    return repr(argument) if isinstance(argument, Link | None) else type(argument).__name__


def told(error: BaseException | None, depth: int = 0) -> list[object]:
    """Describe an exception: type, arguments, functions outside of this package, cause and context."""
    if error is None or depth > 8:
        return [None]
    frames = [
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        # Not the file: a compiled module has the path that it was compiled from.
        if not str(frame.f_globals.get("__name__")).startswith("sqlalchemy_pool_exporter.")
    ]
    return [
        type(error).__name__,
        error.args,
        frames,
        error.__suppress_context__,
        "from",
        *told(error.__cause__, depth + 1),
        "while",
        *told(error.__context__, depth + 1),
    ]
