# SPDX-License-Identifier: Apache-2.0
"""What a forked child closes because it belongs to its parent alone."""

from __future__ import annotations

import weakref
from typing import Protocol

from sqlalchemy_pool_exporter.segment import fork


class Closes(Protocol):
    """Has sockets or locks of a process."""

    def close(self) -> None:
        """Close them."""


# Mutable state: what exists in this process, and whether its children will close it.
_open: weakref.WeakSet[Closes] = weakref.WeakSet()
_is_registered = False


def close_in_children(one: Closes) -> None:
    """Close an object in every child that is forked while it exists."""
    global _is_registered  # noqa: PLW0603 - a process registers its hook once, not at import
    _open.add(one)
    if not _is_registered:
        _is_registered = True
        fork.call_in_child(_close_all)


def _close_all() -> None:
    for one in list(_open):
        one.close()
    _open.clear()
