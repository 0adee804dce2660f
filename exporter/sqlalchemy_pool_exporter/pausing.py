# SPDX-License-Identifier: Apache-2.0
"""Lets the application's other threads run during a scrape in the application's process.

A thread that waits for the GIL gets it after the switch interval, 5 ms, or when the thread that has it gives it away. A
thread that talks to its database waits for the GIL after each answer, and so does an event loop. Without pauses each of
these waits would last 5 ms while a scrape runs.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORK_SECONDS: Final = 0.0005  # between two pauses; a tenth of the switch interval


class _Thread(threading.local):
    """Mutable state: when the next pause of this thread is due. It never is outside ``pausing()``."""

    due = math.inf


_thread = _Thread()


@contextmanager
def pausing() -> Iterator[None]:
    """Make ``pause()`` effective in this thread, for the block. The sidecar does not: it has nothing else to do."""
    before = _thread.due
    _thread.due = min(before, time.perf_counter() + _WORK_SECONDS)
    try:
        yield
    finally:
        _thread.due = before


def pause() -> None:
    """Give the GIL away if a pause is due. A call that does not takes 0.1 µs.

    A thread that computes all the time keeps the GIL for the whole switch interval. So work follows a pause for at
    least as long as the pause took: the scrape takes at most twice its time. A pause for each of 2,000 pools took 13 s
    beside one such thread, which is more than the time limit of Prometheus.
    """
    began = time.perf_counter()
    if began >= _thread.due:
        time.sleep(0)
        ended = time.perf_counter()
        _thread.due = ended + max(_WORK_SECONDS, ended - began)
