# SPDX-License-Identifier: Apache-2.0
"""Waiting until a condition holds that another thread, process or server brings about."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60.0  # No measurement: a loaded machine may take this long before a test gives up.
POLL_SECONDS = 0.01
# A condition may scrape, or make another process do so. It is asked for a fifth of the time at most: what is to bring
# it about needs the processor.
_PAUSE = 4.0  # times what asking took
_LONGEST_PAUSE_SECONDS = 0.2

T = TypeVar("T")


def eventually(
    condition: Callable[[], T], *, seconds: float = SECONDS, poll_seconds: float = POLL_SECONDS
) -> T:
    """Call a condition until its value is true, for at most ``seconds``, and return its last value.

    Assert the result: ``assert eventually(lambda: server.count(name) == 0)``.
    """
    began = time.monotonic()
    deadline = began + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(_pause(began, poll_seconds))
        began = time.monotonic()
    return value


async def eventually_async(
    condition: Callable[[], object], *, seconds: float = SECONDS, poll_seconds: float = POLL_SECONDS
) -> Any:
    """Do the same without blocking the event loop; the condition is a function or a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value or time.monotonic() >= deadline:
            return value
        await asyncio.sleep(_pause(began, poll_seconds))


def _pause(began: float, least: float) -> float:
    """Return how long to wait before a condition is asked again that was asked from ``began`` until now; 0 stays 0."""
    return least and max(least, min(_PAUSE * (time.monotonic() - began), _LONGEST_PAUSE_SECONDS))
