# SPDX-License-Identifier: Apache-2.0
"""Where the counts of a site are."""

from __future__ import annotations

from .entries import HELD_SECONDS, HOLDS


class SiteEntry:
    """Where the counts of a site of one pool are. Not a named tuple, whose attributes take four times as long."""

    __slots__ = ("at", "held_seconds_at", "holds_at", "number", "table")

    def __init__(self, number: int, table: memoryview[float], at: int) -> None:
        self.number = number  # as a row refers to it; 0 if the site has no entry of its own
        self.table = table
        self.at = at  # index in ``table`` of its first count
        self.holds_at, self.held_seconds_at = at + HOLDS, at + HELD_SECONDS  # not to be added at each return
