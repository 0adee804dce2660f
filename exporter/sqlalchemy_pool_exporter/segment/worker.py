# SPDX-License-Identifier: Apache-2.0
"""One worker and its pools, as read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .block import FIRST_COUNTER, HAS_OVERFLOW
from .entries import NO_TEXTS, Texts
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .entries import SiteCounts
    from .facts import Facts
    from .identity import Description, Identity
    from .snapshot import Counts


class WorkerPool(NamedTuple):
    """One pool of one worker, or the totals of the pools of one description that are gone."""

    identity: Identity
    info: dict[str, str]
    snapshot: Snapshot
    ended: float | None = None  # of totals: the Unix time at which the last pool went
    is_resting: bool = False  # of totals: the last process ended with such a pool
    brief: int = 0  # of totals: how many pools of the process that writes went after a few checkouts

    @classmethod
    def of_totals(  # noqa: PLR0913 - what a page of totals says
        cls,
        described: Description,
        counts: Counts,
        ended: float,
        *,
        sites: Sequence[SiteCounts] = (),
        is_resting: bool = False,
        brief: int = 0,
    ) -> WorkerPool:
        """Return the totals of pools that are gone."""
        fields = [0.0] * FIRST_COUNTER
        fields[HAS_OVERFLOW] = float(described.has_overflow)
        snapshot = Snapshot(fields, [], [], counts, sites)
        return cls(described.identity, described.info, snapshot, ended, is_resting, brief)

    @property
    def name(self) -> str:
        """The name that the application gave, or the default name."""
        return self.identity.name


@dataclass(frozen=True, slots=True)
class Worker:
    """The contents of one segment file."""

    number: str
    identity: bytes  # random and unique to the file
    holders: int  # how many processes have written the file so far
    is_live: bool
    pools: tuple[WorkerPool, ...]
    facts: Facts
    has_forked: bool = False  # the process that writes the file forked another one
    was_used: bool = False  # that process used a pool that is gone
    drops: int = 0  # how many totals the file has lost so far
    texts: Texts = NO_TEXTS

    @property
    def is_parent(self) -> bool:
        """Whether the process only started other ones: it has forked, and has never used a pool."""
        return self.has_forked and not (self.was_used or any(pool.snapshot.was_used for pool in self.pools))
