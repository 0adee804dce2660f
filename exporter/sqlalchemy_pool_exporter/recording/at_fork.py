# SPDX-License-Identifier: Apache-2.0
"""What a forked child closes because it belongs to its parent alone; and how many children were forked."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from sqlalchemy_pool_exporter.segment import fork


class Closes(Protocol):
    """Has sockets or locks of a process."""

    def close(self) -> None:
        """Close them."""


class _State:
    """What exists in this process, and how many children it forked."""

    def __init__(self) -> None:
        self.open: weakref.WeakSet[Closes] = weakref.WeakSet()
        self.is_registered = False
        self.children = 0


_state = _State()


def close_in_children(one: Closes) -> None:
    """Close an object in every child that is forked while it exists."""
    _state.open.add(one)
    count_children()


def count_children() -> int:
    """Return how many children this process has forked since the first call; those forked in C are not counted."""
    if not _state.is_registered:
        _state.is_registered = True
        fork.call_in_child(_leave_parent)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_parent=_forked)
    return _state.children


def _forked() -> None:
    _state.children += 1


def _leave_parent() -> None:
    _state.children = 0
    for one in list(_state.open):
        one.close()
    _state.open.clear()
