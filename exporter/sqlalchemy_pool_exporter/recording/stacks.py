# SPDX-License-Identifier: Apache-2.0
"""What a thread or a task does now, seen from another thread."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .frames import Kind, kind_of, module_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from .connection_row_cy import Holder

_MOST: Final = 50  # frames, the innermost ones
# What a holder that waits for the database has on top of its stack. A driver that is written in C has no frame.
_DATABASE: Final = frozenset(
    ("sqlalchemy", "asyncpg", "psycopg", "pymysql", "aiomysql", "asyncmy", "mysql", "aiosqlite", "oracledb")
)


# Of a holder that waits for a connection; SQLAlchemy's own frames are behind a greenlet if it is a task.
_QUEUES: Final = frozenset(("sqlalchemy.util.queue", "asyncio.queues"))


class Activity(NamedTuple):
    """What a holder does now."""

    kind: str  # "database": it waits for that; "queue": for a connection; "elsewhere": for something else; "ended"
    at: str  # module:function:line of the application's innermost frame, else of a library's; empty without one


def stack_of(holder: Holder) -> list[str]:
    """Return the stack of a thread or a task, the innermost frame last; an empty list if it has ended."""
    return [_text(frame) for frame in _frames(holder)][::-1]


def activity_of(holder: Holder, prefixes: Sequence[str] = ()) -> Activity:
    """Return what a thread or a task does now.

    Args:
        holder: of a connection.
        prefixes: of the modules that are the application's, if it named any.
    """
    frames = _frames(holder)
    if not frames:
        return Activity("ended", "")
    in_database = in_queue = False
    library = None
    for frame in frames:
        kind = "elsewhere" if not in_database else "queue" if in_queue else "database"
        whose = kind_of(frame, prefixes)
        if whose is Kind.APPLICATION:
            return Activity(kind, text_of(frame))
        module = module_of(frame)
        is_of_database = module.partition(".")[0] in _DATABASE
        if whose is Kind.LIBRARY and library is None and not is_of_database:
            library = Activity(kind, text_of(frame))
        in_queue = in_queue or module in _QUEUES
        in_database = in_database or is_of_database
    return library or Activity("elsewhere", "")


def _frames(holder: Holder) -> list[FrameType]:
    """Return the innermost frames of a thread or a task, the innermost one first."""
    if holder.task is None:
        return list(_calls(_current_frame(holder)))[:_MOST]
    task = holder.task()
    return [] if task is None or task.done() else list(_awaits(task.get_coro(), holder))[:_MOST]


def _calls(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _current_frame(holder: Holder) -> FrameType | None:
    return sys._current_frames().get(holder.thread_id)  # noqa: SLF001 - documented, and there is no other way


def _awaits(coroutine: Any, holder: Holder) -> list[FrameType]:
    """Return the frames of a coroutine and of what it awaits, the innermost one first."""
    if getattr(coroutine, "cr_running", False):
        return list(_calls(_current_frame(holder)))
    frames: list[FrameType] = []
    while coroutine is not None and len(frames) < _MOST:
        for frame, awaited in (
            ("cr_frame", "cr_await"),
            ("gi_frame", "gi_yieldfrom"),
            ("ag_frame", "ag_await"),
        ):
            if hasattr(coroutine, frame):
                frames.append(getattr(coroutine, frame))
                coroutine = getattr(coroutine, awaited)
                break
        else:
            coroutine = _waited_for(frames[-1] if frames else None)
    return [frame for frame in reversed(frames) if frame is not None]


def _waited_for(frame: FrameType | None) -> Any:
    """Return the coroutine that ``asyncio.wait_for()`` awaits in a task of its own, as it does before Python 3.12."""
    asyncio: Any = sys.modules.get("asyncio")
    if frame is None or asyncio is None or frame.f_code is not asyncio.wait_for.__code__:
        return None  # a future, or an iterator that is not written in Python
    get_coro = getattr(frame.f_locals.get("fut"), "get_coro", None)
    return None if get_coro is None else get_coro()


def _text(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
