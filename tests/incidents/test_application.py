# SPDX-License-Identifier: Apache-2.0
"""Incidents of an application: the board, the metrics and the log name the site, the process and the cause."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.engineer import LOGGED, SECONDS, WAIT, Engineer, site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.incidents import Stage

    Staged = Callable[..., Stage]

pytestmark = pytest.mark.newest  # `soak` has most of them, and runs on the newest dependencies


def usual(stage: Stage, act: str) -> Engineer:
    """Let the callers do what they usually do, until it is known how long that takes."""
    stage.load(2, act, pause=0.02)
    engineer = Engineer(stage)
    engineer.metric("hold_seconds_count", above=20.0)
    return engineer


def test_slow_query(stage: Staged) -> None:
    """A slow statement is told from other reasons to hold a connection, with the place that executes it."""
    staged = stage("shop", pool={"pool_size": 2, "max_overflow": 1, "pool_timeout": 1.5})
    engineer = usual(staged, "order")
    (worker,) = staged.workers
    worker.load(callers=8, act="report", seconds=60.0)
    report = site("shop:report")
    engineer.line(
        "waiting",
        rf"slow: {WAIT}; all 3 connections of {engineer.where(worker)} are in use, and the last came back "
        rf"{SECONDS} ago; "
        rf"likely cause: slow statements: 3 of 3 connections run one, the longest for {SECONDS}, "
        rf"from {report} \(caller-\d, GET /report\)",
    )
    engineer.held(site_like=report, pid=str(worker.pid), state="active")
    engineer.metric("held_connections", above=2.0, site="tests.incidents.shop:report:")
    engineer.metric("held_connections_by_server_state", above=2.0, server_state="active")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}, size=2, max_overflow=1\) is exhausted: a checkout at {report} "
        rf".*"
        rf"3 from {report}, the oldest for {LOGGED} \(caller-\d, GET /report\).* Likely cause: stuck: no "
        rf"connection came back in "
        rf"{LOGGED}: .*\. The oldest waits for the database now, in {report}",
    )


def test_dependency_that_is_not_closed(stage: Staged) -> None:
    """A generator dependency that does not close its session after an error: the route is named, and its ended task."""
    staged = stage(
        "api",
        pool={"pool_size": 3, "max_overflow": 0, "pool_timeout": 1.0},
        leak_after=1.5,
    )
    engineer = usual(staged, "orders")
    (worker,) = staged.workers
    worker.load(callers=1, act="lost_order", pause=0.3)
    route, where = site("api:show_order"), engineer.where(worker)
    engineer.line(
        "held_long",
        rf"held: 3 connections are out for over 1\.5 s \(leak_after\); the oldest is held for "
        rf"{SECONDS}, "
        rf"by {route} \(Task-\d+\) in {where}",
    )
    engineer.line(
        "waiting",
        rf"slow: {WAIT}; all 3 connections of {where} are in use, and the last came back {SECONDS} ago; "
        rf"likely cause: "
        rf"3 of 3 connections are held for far longer than is usual and may never come back \(all from "
        rf"{route}\); "
        rf"3 of 3 connections are idle in transaction, the longest for {SECONDS}, from {route} \(Task-\d+\)",
    )
    engineer.held(site_like=route, pid=str(worker.pid), state="idle_in_transaction")
    engineer.metric("leak_suspects", above=2.0)
    engineer.metric("suspected_leaks_total", above=2.0, site="tests.incidents.api:show_order:")
    engineer.log(
        worker,
        rf"^a connection of pool 'orders' \(pid {worker.pid}\) is held for {LOGGED}, longer than "
        rf"leak_after=1.5: from {route} "
        r"\(Task-\d+\); that has ended and did not return it; session \d+ of the server",
    )
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}, .* 3 from {route}, .* Likely cause: leak: .*\. The thread or task of the "
        r"oldest has ended and did not return it",
    )


@pytest.fixture
def payments() -> Iterator[str]:
    """Run a service that accepts connections and never answers; return its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield str(server.getsockname()[1])


@pytest.mark.soak
def test_session_held_across_a_call(stage: Staged, payments: str) -> None:
    """A session that is open during a call of another service: not slow, not leaked, but idle in transaction."""
    staged = stage(
        "api",
        pool={"pool_size": 2, "max_overflow": 1, "pool_timeout": 1.5},
        environment={"PAYMENTS_PORT": payments},
    )
    engineer = usual(staged, "orders")
    (worker,) = staged.workers
    worker.load(callers=8, act="charges", seconds=60.0)
    route = site("api:charge")
    engineer.line(
        "waiting",
        rf"slow: {WAIT}; all 3 connections of {engineer.where(worker)} are in use, and the last came back "
        rf"{SECONDS} ago; "
        r"likely cause: connections are held while the application does something else: 3 of 3 connections "
        r"are idle in "
        rf"transaction, the longest for {SECONDS}, from {route} \(Task-\d+\)",
    )
    engineer.held(site_like=route, pid=str(worker.pid), state="idle_in_transaction")
    engineer.metric("held_connections", above=2.0, site="tests.incidents.api:charge:")
    engineer.metric("held_connections_by_server_state", above=2.0, server_state="idle_in_transaction")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}, .* 3 from {route}, .* Likely cause: stuck: .*"
        rf"\. The oldest is not in the database now, but in {site('api:call_payments')}",
    )


@pytest.mark.soak
def test_nested_checkout(stage: Staged) -> None:
    """Callers that wait for a second connection while they hold the first one: a self-deadlock, with what ends it."""
    staged = stage("shop", pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 3.0})
    engineer = usual(staged, "order")
    (worker,) = staged.workers
    worker.load(callers=6, act="transfer", seconds=0.05, pause=0.0)
    place = site("shop:transfer")
    engineer.line(
        "self_deadlock",
        rf"self-deadlock in {engineer.where(worker)}: the holders of all 2 connections wait for another one "
        rf"of this pool, "
        rf"the first for {SECONDS}, at {place}; that ends when a checkout fails after 3\.0 s",
    )
    engineer.metric("self_deadlocked")
    engineer.metric("nested_checkouts_total", site="tests.incidents.shop:transfer:")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}, .* 2 from {place}, .* Likely cause: self_deadlock: every "
        rf"holder waits for another "
        rf"connection of this pool, so none can go on: .*",
    )


@pytest.mark.soak
def test_blocked_event_loop(stage: Staged) -> None:
    """A route that does not await: its process is named, and the place of the last checkout, which is the route's."""
    staged = stage("api", workers=2, pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 1.0})
    engineer = usual(staged, "orders")
    _, culprit = staged.workers
    culprit.load(callers=5, act="thumbnail", seconds=4.0)
    route = site("api:draw_thumbnail")
    engineer.line(
        "loop_blocked",
        rf"event loop blocked: {engineer.where(culprit)} has run no task for {SECONDS}; none can return a "
        rf"connection; the last checkout was {SECONDS} ago, at {route} \(Task-\d+\); py-spy dump --pid "
        rf"{culprit.pid} says what it does",
    )
    engineer.held(site_like=route, pid=str(culprit.pid), state="idle_in_transaction")
    engineer.metric("event_loop_lag_seconds", above=1.0, worker=engineer.number(culprit))
    engineer.log(
        culprit,
        rf"^pool 'orders' \(pid {culprit.pid}, .* from {route}, .* Likely cause: loop_blocked: the event loop was "
        rf"blocked for {LOGGED}, so no task could return a connection",
    )


def test_lock(stage: Staged) -> None:
    """A lock that a transaction of another process has: who waits, who has it, and what that one does instead."""
    staged = stage("shop", workers=2, pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 1.5})
    engineer = usual(staged, "order")
    culprit, victim = staged.workers
    pay, restock = site("shop:pay"), site("shop:restock")
    culprit.load(callers=1, act="restock", seconds=60.0)
    engineer.held(site_like=restock, pid=str(culprit.pid), state="idle_in_transaction")
    victim.load(callers=6, act="pay")
    has_it = rf"{restock} in {engineer.where(culprit)} has it, idle in transaction, as session \d+"
    engineer.line(
        "blocked",
        rf"blocked: 2 connections wait for a lock, {pay} \(caller-\d, POST /pay\) in "
        rf"{engineer.where(victim)} "
        rf"for {SECONDS}; {has_it}",
    )
    engineer.line(
        "waiting",
        rf"slow: {WAIT}; all 2 connections of {engineer.where(victim)}, one of 2, are in use, and the last "
        rf"came back {SECONDS} "
        rf"ago; likely cause: a lock: 2 of 2 connections wait for one, the longest for {SECONDS}, from {pay} "
        rf"\(caller-\d, POST /pay\); {has_it}",
    )
    engineer.metric("held_connections_by_server_state", above=1.0, server_state="waiting_for_lock")
    engineer.metric("held_connections", site="tests.incidents.shop:restock:")
    engineer.log(
        victim,
        rf"^pool 'orders' \(pid {victim.pid}, .* 2 from {pay}, .*\. The oldest waits for the database now, "
        rf"in {pay}",
    )


@pytest.mark.soak
def test_pool_smaller_than_the_threads(stage: Staged) -> None:
    """Connections come back as usual and are too few: the number of callers is said, and nobody is accused."""
    staged = stage("shop", pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 1.5})
    engineer = Engineer(staged)
    (worker,) = staged.workers
    # Before anybody times out, connections are open, and it is known for how long they are held. On a busy machine many
    # of these statements end during the timeout, too: after one report, the next is due only a minute later.
    worker.load(callers=2, act="order", seconds=0.2, pause=0.0)
    engineer.metric("hold_seconds_count", above=15.0)
    worker.load(callers=24, act="order", seconds=0.2, pause=0.0)
    place = site("shop:order")
    cause = (
        rf"connections come back as usual, after {LOGGED}, and are taken at once \(all from {place}\): "
        rf"there is more work "
        r"than connections, \d+ callers for 2"
    )
    engineer.line(
        "waiting",
        rf"busy: {WAIT}; all 2 connections of {engineer.where(worker)} are in use, and the last came back "
        rf"{SECONDS} ago; "
        rf"likely cause: {cause}",
    )
    engineer.metric("checkout_timeouts_total")
    engineer.metric("held_connections", above=1.0, site="tests.incidents.shop:order:")
    engineer.log(
        worker, rf"^pool 'orders' \(pid {worker.pid}, .* 2 from {place}, .* Likely cause: busy: {cause}"
    )


@pytest.mark.soak
def test_one_worker_of_four(stage: Staged) -> None:
    """One worker whose callers hang is named, and that the others work."""
    staged = stage("shop", workers=4, pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 2.0})
    engineer = usual(staged, "order")
    *others, culprit = staged.workers
    culprit.load(callers=4, act="hang")
    place, where = site("shop:hang"), engineer.where(culprit)
    engineer.line(
        "waiting",
        rf"slow: {WAIT}; all 2 connections of {where}, one of 4, are in use, and the last came back "
        rf"{SECONDS} ago; likely cause: "
        rf"connections are held while the application does something else: 2 of 2 connections are idle in "
        rf"transaction, "
        rf"the longest for {SECONDS}, from {place} \(caller-\d\)",
    )
    engineer.held(site_like=place, pid=str(culprit.pid), state="idle_in_transaction")
    engineer.metric("held_connections", above=1.0, site="tests.incidents.shop:hang:")
    engineer.log(
        culprit,
        rf"^pool 'orders' \(pid {culprit.pid}, .* 2 from {place}, .* Likely cause: stuck: .*\. The oldest "
        rf"is not in the "
        rf"database now, but in {place}",
    )
    assert ["", "", ""] == [worker.log.read_text() for worker in others]


@pytest.mark.soak
def test_one_worker_of_four_for_long(stage: Staged) -> None:
    """After half a minute without a return the worker is called stuck, which is critical."""
    staged = stage("shop", workers=4, pool={"pool_size": 2, "max_overflow": 0, "pool_timeout": 40.0})
    engineer = usual(staged, "order")
    culprit = staged.workers[-1]
    culprit.load(callers=4, act="hang")
    engineer.line(
        "stuck",
        rf"stuck: {engineer.where(culprit)} has all 2 connections out and returned none for {SECONDS}; "
        rf"{WAIT}; the oldest is held "
        rf"for {SECONDS}, by {site('shop:hang')} \(caller-\d\).*",
    )
