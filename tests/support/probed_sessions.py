# SPDX-License-Identifier: Apache-2.0
"""What a probe of a database would say of sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.segments import NOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_pool_exporter.held_connections import ServerHealth, ServerLimits, Session
    from sqlalchemy_pool_exporter.segment.held import Held


@dataclass
class Probed:
    """What a probe said: sessions by the server's process."""

    sessions: Mapping[int, Session]
    pools: tuple[str, ...] = ("orders",)
    database: str = "main"
    identity: str = "server"
    asked_at: float = NOW - 2.0
    limits: ServerLimits | None = None
    uncertain: set[int] = field(default_factory=set)
    health: ServerHealth | None = None

    def session(self, pid: int) -> Session | None:
        return self.sessions.get(pid)

    def session_of(self, connection: Held) -> Session | None:
        return None if connection.server_pid in self.uncertain else self.session(connection.server_pid)
