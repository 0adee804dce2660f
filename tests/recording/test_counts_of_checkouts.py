# SPDX-License-Identifier: Apache-2.0
"""Each checkout, return, wait and hold is counted once, however the connection comes back."""

from __future__ import annotations

import gc
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc, text

if TYPE_CHECKING:
    from tests.support.pool_case import Case


def test_checkouts_and_returns(case: Case) -> None:
    """Each checkout, return, wait and hold is counted once, and a reused connection is one connect."""

    def scenario(case: Case) -> None:
        engine = case.start()
        for _ in range(3):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
                assert case.now().value("connections", case.name, state="in_use") == 1
        case.assert_true(
            checkouts=3,
            checkins=3,
            connects=1,
            checkout_wait_seconds_count=3,
            connect_seconds_count=1,
            hold_seconds_count=3,
        )

    case.run(scenario)


def test_timeouts_under_starvation(case: Case) -> None:
    """A caller that waits for pool_timeout counts as a timeout, and its wait is in the histogram."""

    def scenario(case: Case) -> None:
        engine = case.start()
        first, second = engine.connect(), engine.connect()
        for _ in range(2):
            with pytest.raises(exc.TimeoutError):
                engine.connect()
        exposition = case.now()
        assert exposition.value("connections", case.name, state="in_use") == 2
        assert exposition.value("checkout_wait_seconds_sum", case.name) >= 0.1
        first.close()
        second.close()
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            checkout_timeouts=2,
            overflow_opened=1,
            closes__overflow=1,
            checkout_wait_seconds_count=4,
        )

    case.run(scenario)


def test_second_checkout_of_a_raw_connection(case: Case) -> None:
    """A raw connection checked out a second time counts as one checkout, which ends with the last close."""

    def scenario(case: Case) -> None:
        engine = case.start()
        raw: Any = engine.raw_connection()
        again = raw._checkout_existing()
        again.close()
        assert case.now().value("connections", case.name, state="in_use") == 1
        raw.close()
        case.assert_true(checkouts=1, checkins=1, connects=1)

    case.run(scenario)


def test_ages(case: Case) -> None:
    """The ages of the oldest hold and the oldest connection grow; a return sets the time of the last return."""

    def scenario(case: Case) -> None:
        engine = case.start()
        assert case.now().value("last_checkin_timestamp_seconds", case.name) == 0
        before = time.time()
        with engine.connect():
            time.sleep(0.05)
            exposition = case.now()
            assert exposition.value("longest_held_seconds", case.name) >= 0.05
            assert exposition.value("oldest_connection_seconds", case.name) >= 0.05
        exposition = case.now()
        assert exposition.value("longest_held_seconds", case.name) == 0
        assert before <= exposition.value("last_checkin_timestamp_seconds", case.name) + 0.001
        assert exposition.value("hold_seconds_sum", case.name) >= 0.05

    case.run(scenario)


def test_detach_then_close(case: Case) -> None:
    """A detached connection leaves the pool at once; its close is counted when its holder closes it."""

    def scenario(case: Case) -> None:
        engine = case.start()
        closed = []

        @event.listens_for(engine, "close_detached")
        def tally(connection: object) -> None:
            closed.append(id(connection))

        connection = engine.connect()
        connection.detach()
        assert case.now().value("connections", case.name, state="in_use") == 0
        case.assert_server_agrees(detached=1)
        with engine.connect():
            connection.close()
        if not closed:
            # For an asyncio dialect without terminate(), SQLAlchemy leaves the close to the garbage collector.
            assert case.is_async
            assert not engine.dialect.has_terminate
            return
        case.assert_true(checkouts=2, checkins=1, connects=2, detaches=1, closes__detached=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        case.run(scenario)
        gc.collect()


def test_connection_left_to_the_garbage_collector(case: Case) -> None:
    """A checkout whose proxy is garbage-collected counts as leaked and no longer as in use."""

    def scenario(case: Case) -> None:
        engine = case.start()
        connection = engine.connect()
        del connection
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        counted = case.now().counters(case.name)
        assert counted["leaked_checkouts"] == 1
        assert case.now().value("connections", case.name, state="in_use") == 0
        # A synchronous connection goes back to the pool; an asyncio connection cannot roll back, so it is closed.
        ended = {key: counted.get(key, 0) for key in ("checkins", "detaches", "closes.gc")}
        returned = {"checkins": 1, "detaches": 0, "closes.gc": 0}
        # SQLAlchemy 2.0.0 tries to roll back all the same; that works here, because a greenlet is running.
        assert ended == ({"checkins": 0, "detaches": 1, "closes.gc": 1} if case.is_async else returned) or (
            ended == returned and engine.dialect.has_terminate and case.log.counts["closes"] == 0
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)
