# SPDX-License-Identifier: Apache-2.0
"""The five scenes: what happens in each, and which metrics must show it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .observe import Culprit, peaked, rose, slower_than

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .load import Stage
    from .observe import Evidence, Window

OBJECTIVE = "0.25"  # seconds; objective for the wait for a connection, and the bound of a bucket
LONG_HOLD = 0.4  # seconds; every query of the leak scene is much shorter
FAST = "/query?seconds=0.01"
SLOW = "/query?seconds=0.8"  # longer than pool_timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene.

    Args:
        name: one or two words.
        story: one sentence: what happens, and what to look at.
        metrics: which metrics show it, without their prefix.
        play: runs the scene until ``stage.over``.
        evidence: what the metrics must show when the scene is over.
        culprits: whom the board must have named.
    """

    name: str
    story: str
    metrics: tuple[str, ...]
    play: Callable[[Stage], Awaitable[None]]
    evidence: tuple[Evidence, ...]
    culprits: tuple[Culprit, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A scene that was played, its scrapes, and the responses that its users got."""

    scene: Scene
    window: Window
    answers: Mapping[tuple[str, int], int]

    @property
    def visible(self) -> bool:
        """Whether all of the scene's evidence was found, and its culprits were named."""
        wanted: list[Evidence | Culprit] = [*self.scene.evidence, *self.scene.culprits]
        return all(one.holds(self.window) for one in wanted)


async def healthy(stage: Stage) -> None:
    # Each worker has 3 users of each pool, fewer than pool_size, so no user waits even on a slow machine.
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.users(6, "orders", FAST))
        group.create_task(stage.users(6, "billing", FAST))


async def starvation(stage: Stage) -> None:
    # In each worker, 12 users share a pool of at most 6 connections. A query takes longer than pool_timeout, so the
    # users who wait for a connection time out.
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.users(24, "orders", SLOW))
        group.create_task(stage.users(24, "billing", SLOW))


async def stale(stage: Stage) -> None:
    await _visits(stage)
    while not stage.over:
        await stage.database.terminate_connections("orders")
        await stage.database.terminate_connections("billing")
        await _visits(stage)


async def recycle(stage: Stage) -> None:
    # In each worker, two users use both connections of the pool by turns. Each connection soon exceeds the pool_recycle
    # of one second.
    await stage.users(4, "billing", "/report?seconds=0.05", pause=0.1)


async def leak(stage: Stage) -> None:
    # In each worker, two leaked connections and two users make up pool_size. SQLAlchemy closes an overflow connection
    # that the garbage collector returns, but an asyncpg connection cannot be closed there: old asyncpg releases warn.
    while not stage.over:
        for _ in range(2):
            await stage.post("orders", "/leak")
            await stage.post("billing", "/leak")
            await _visits(stage, users=4)
        await stage.post("orders", "/evict")
        await stage.post("billing", "/evict")


async def _visits(stage: Stage, users: int = 6) -> None:
    """Let users send 7 requests each to both applications, which takes about half a second."""
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.users(users, "orders", FAST, requests=7))
        group.create_task(stage.users(users, "billing", FAST, requests=7))


SCENES = (
    Scene(
        name="healthy",
        story="A few users and short queries: connections are in use for moments, and nobody waits for one.",
        metrics=("connections", "checkouts_total", "checkout_wait_seconds"),
        play=healthy,
        evidence=(
            rose("orders", "checkouts_total"),
            rose("billing", "checkouts_total"),
            rose("orders", "checkout_timeouts_total", absent=True),
            rose("billing", "checkout_timeouts_total", absent=True),
        ),
    ),
    Scene(
        name="starvation",
        story="Slow queries hold every connection: callers pile up as pending, and wait until pool_timeout turns "
        "them away. The board names the function whose sessions are active in the server.",
        metrics=("pending_checkouts", "checkout_timeouts_total", "checkout_wait_seconds"),
        play=starvation,
        evidence=tuple(
            evidence
            for pool in ("orders", "billing")
            for evidence in (
                peaked(pool, "pending_checkouts"),
                rose(pool, "checkout_timeouts_total"),
                slower_than(OBJECTIVE, pool, "checkout_wait_seconds"),
            )
        ),
        culprits=(Culprit("orders", "query", "active"), Culprit("billing", "query", "active")),
    ),
    Scene(
        name="stale",
        story="The server closes idle connections: orders notices by its pre-ping and reconnects, billing has none "
        "and pays with a failed request.",
        metrics=("ping_failures_total", "closes_total", "invalidations_total"),
        play=stale,
        evidence=(
            rose("orders", "ping_failures_total"),
            rose("orders", "closes_total", reason="ping_failed"),
            rose("billing", "closes_total", reason="error"),
            rose("billing", "invalidations_total", kind="hard"),
        ),
    ),
    Scene(
        name="recycle",
        story="The pool of the reports replaces connections older than its pool_recycle of one second: as many are "
        "opened as are closed.",
        metrics=("closes_total", "connects_total", "oldest_connection_seconds"),
        play=recycle,
        evidence=(
            rose("reports", "closes_total", reason="recycle"),
            rose("reports", "connects_total"),
        ),
    ),
    Scene(
        name="leak",
        story="A handler keeps connections and never closes them: the longest hold grows and grows, until the garbage "
        "collector finds them. The board names the handler, whose sessions are idle in the server.",
        metrics=("longest_held_seconds", "leaked_checkouts_total"),
        play=leak,
        evidence=tuple(
            evidence
            for pool in ("orders", "billing")
            for evidence in (
                peaked(pool, "longest_held_seconds", above=LONG_HOLD),
                rose(pool, "leaked_checkouts_total"),
            )
        ),
        culprits=(Culprit("orders", "leak", "idle"), Culprit("billing", "leak", "idle")),
    ),
)
