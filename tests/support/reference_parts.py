# SPDX-License-Identifier: Apache-2.0
"""The parts of the model of SQLAlchemy's pool: connection records, pools, callers, and what is raised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Generator

Waiting = Literal["queue", "connect"]

# Times are ticks from 1 on; a connection made at a negative time is older than pool_recycle.
NEVER = -1_000_000_000_000
AGED = -1_000_000


class Fault(Exception):  # noqa: N818 - not always an error
    """An exception that SQLAlchemy raises or lets through, by kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    @property
    def is_exit(self) -> bool:
        """Whether the exception is no ``Exception``, but a cancellation or an interrupt."""
        return self.kind in ("cancelled", "interrupted")

    @property
    def counted_as(self) -> str:
        """The counter of a checkout that ends with this fault."""
        if self.kind == "timeout":
            return "checkout_timeouts"
        if self.is_exit:
            return "checkout_errors.cancelled"
        return "checkout_errors.connect" if self.kind == "refused" else "checkout_errors.other"


@dataclass(eq=False)
class Slot:
    """A connection record, with the state of its connection."""

    pool: Pool
    open: bool = False
    dead: bool = False  # the server ended it, and the pool has not noticed
    dirty: bool = False  # in a transaction
    fresh: bool = False
    made: int = 0  # when, in ticks
    invalidated: int = NEVER  # by a soft invalidation, in ticks
    out: bool = False  # it has a proxy, also before connect() returns
    handed_out: bool = False  # connect() has returned it
    timed: bool = False  # the instrumentation saw its checkout
    site: str = ""  # where it was checked out last
    holder: str = ""  # the thread or task that did
    retired: bool = False  # its pool was disposed of
    interrupted: bool = False
    known_to: int = 0  # the instrumentation that knows of it
    record: Any = None  # a weak reference, once it is known


@dataclass(eq=False)
class Pool:
    """A pool, with the numbers that it reports."""

    size: int
    max_overflow: int
    queue: list[Slot] = field(default_factory=list)
    overflow: int = 0  # as SQLAlchemy counts it, from -size
    invalidated: int = NEVER
    instrumentation: int = 0  # which one is attached; 0: none
    keeps_none: bool = False  # a NullPool
    has_listeners: bool = False
    replaced: bool = False
    reference: Any = None  # a weak reference

    def __post_init__(self) -> None:
        self.overflow = -self.size
        if not self.size:
            self.max_overflow = -1

    @property
    def has_room(self) -> bool:
        return self.keeps_none or self.max_overflow == -1 or self.overflow < self.max_overflow


@dataclass(eq=False)
class Caller:
    """A call of ``connect()``."""

    pool: Pool
    instrumentation: int
    site: str = ""
    holder: str = ""
    at: Waiting | None = None
    steps: Generator[Waiting, bool, Slot] = field(init=False)
    slot: Slot | None = None
    fault: str = ""


@dataclass(eq=False)
class Detached:
    """A connection that left its pool."""

    slot: Slot
    pool: Pool
    dead: bool
    dirty: bool
