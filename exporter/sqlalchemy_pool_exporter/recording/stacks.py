# SPDX-License-Identifier: Apache-2.0
"""What a thread or a task does now, seen from another thread."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from .connection_row import Holder

_MOST: Final = 50  # frames, the innermost ones


def stack_of(holder: Holder) -> list[str]:
    """Return the stack of a thread or a task, the innermost frame last; an empty list if it has ended."""
    if holder.task is None:
        frames = list(_calls(_current_frame(holder)))
    else:
        task = holder.task()
        frames = [] if task is None or task.done() else list(_awaits(task.get_coro(), holder))
    return [_text(frame) for frame in frames[:_MOST]][::-1]


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
            coroutine = None  # a future, or an iterator that is not written in Python
    return [frame for frame in reversed(frames) if frame is not None]


def _text(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
