# SPDX-License-Identifier: Apache-2.0
"""The part of a recorder's state that the hot path reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow
    from .connection_table import ConnectionTable


class RecorderState:
    """What the hot path reads of a recorder. Compiled, to read it takes no look-up.

    Mutable state: all but the clock. ``block`` is replaced when the process forks, and is empty once the recorder is
    stopped.
    """

    __slots__ = ("block", "clock", "connections", "has_latecomers", "other_sites", "rows_by_id", "storage")

    def __init__(self, clock: Callable[[], float], connections: ConnectionTable, storage: PoolBlock) -> None:
        self.clock = clock
        self.connections = connections
        self.rows_by_id: dict[int, ConnectionRow | None] = connections.by_id
        self.use(storage)
        # Whether checkouts can be under way that do not run through the hook, because they began before it was there.
        self.has_latecomers = False

    def use(self, storage: PoolBlock) -> None:
        """Store into another block from now on."""
        self.storage = storage
        self.block: memoryview[float] = storage.doubles
        self.other_sites: SiteEntry = storage.other_sites
