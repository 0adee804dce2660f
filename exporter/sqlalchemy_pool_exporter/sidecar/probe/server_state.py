# SPDX-License-Identifier: Apache-2.0
"""What one probe read from a server, whatever kind of server it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.held_connections import ServerLimits

from .sessions import application_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_pool_exporter.metrics import SessionState

    from .sessions import Sessions

APPLICATION_NAME: Final = "sqlalchemy-pool-exporter"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What kind of server answered, and what the probe's role may see of it.

    ``identity`` is the same for every role and every way to the server, and another one for its replicas and copies,
    which have its system identifier.
    """

    identity: str
    start_time: float  # Unix time
    is_in_recovery: bool | None  # or another server's replica; None if the role may not know
    is_read_only: bool  # for new sessions of the role
    sees_all_sessions: bool
    is_monitor: bool  # member of pg_monitor, also if it does not inherit its rights
    session_settings: str  # of role and database; a session keeps those it began with
    read_only_setting: str = (
        "default_transaction_read_only"  # what makes it refuse writes, outside of recovery
    )
    why_hidden: str = ""  # why the state of some sessions is unknown, and what the operator can do about it


@dataclass(frozen=True, slots=True)
class ServerState:
    """What one probe read from a server.

    A value that the probe cannot know, or that does not apply, is ``None`` or a missing key.
    """

    max_connections: int
    reserved_connections: int
    connections: Mapping[SessionState, int]
    application_connections: Mapping[str, int] | None
    longest_idle_in_transaction_seconds: float | None
    idle_session_timeout_seconds: float | None
    idle_in_transaction_session_timeout_seconds: float | None
    behind_pooler: bool
    facts: ServerFacts
    sessions: Sessions | None = None
    user_connections: Mapping[str, int] | None = None
    interactive_timeout_seconds: float | None = None
    threads_running: int | None = None

    @property
    def limits(self) -> ServerLimits:
        """What the server allows."""
        return ServerLimits(
            self.max_connections - self.reserved_connections,
            self.idle_session_timeout_seconds,
            self.behind_pooler,
        )

    @property
    def hidden_sessions(self) -> int:
        """Number of sessions whose state the probe cannot tell."""
        return self.connections.get("unknown", 0)


def count_by_name(counted: Iterable[tuple[str | None, int]], names_limit: int) -> dict[str, int]:
    """Return the sum for each name as a label value: the largest ones, and all others as "other"."""
    counts: Counter[str] = Counter()
    for name, count in counted:
        counts[application_label(name)] += count
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    largest = Counter(dict(ranked[:names_limit]))
    # Added instead of assigned, because an application may call itself "other".
    largest["other"] += sum(count for _, count in ranked[names_limit:])
    return dict(largest)
