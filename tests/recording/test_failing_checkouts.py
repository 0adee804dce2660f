# SPDX-License-Identifier: Apache-2.0
"""Connects and listeners that fail: each failure counts as one error, and no connection stays in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc

from tests.support.pool_case import age
from tests.support.witness import assert_log_agrees, metric_state, pool_state

if TYPE_CHECKING:
    from tests.support.pool_case import Case


def test_reconnect_that_fails_after_a_recycle(case: Case) -> None:
    """If the reconnect after a recycle fails, the old connection counts as closed and the next checkout works."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_recycle=3600)
        failing = False

        @event.listens_for(engine, "do_connect")
        def refuse(*_: object) -> None:
            if failing:
                raise ConnectionRefusedError

        with engine.connect() as connection:
            age(connection, 7200)
        failing = True
        with pytest.raises(ConnectionRefusedError):
            engine.connect()
        failing = False
        assert case.now().value("empty_slots", case.name) == 1
        case.assert_true(
            checkouts=1,
            checkins=1,
            connects=1,
            connect_errors=1,
            checkout_errors__connect=1,
            closes__recycle=1,
            checkout_wait_seconds_count=2,
            connect_seconds_count=2,
        )
        engine.connect().close()
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            connect_errors=1,
            checkout_errors__connect=1,
            closes__recycle=1,
        )

    case.run(scenario)


def test_first_connect_that_fails(case: Case) -> None:
    """If no connection can be made, each checkout counts as an error; nothing is in use and no slot is empty."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "do_connect")
        def refuse(*_: object) -> None:
            raise ConnectionRefusedError

        kept = []
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError) as info:
                engine.connect()
            kept.append(info)  # keeps SQLAlchemy's record alive, through the traceback
        case.assert_true(connect_errors=3, checkout_errors__connect=3)

    case.run(scenario)


def test_listener_that_finds_the_connection_stale(case: Case) -> None:
    """If a ``checkout`` listener raises DisconnectionError, SQLAlchemy reconnects: one close, but one checkout."""

    def scenario(case: Case) -> None:
        engine = case.start()
        stale = [False, True]

        @event.listens_for(engine, "checkout")
        def check(*_: object) -> None:
            if stale and stale.pop(0):
                raise exc.DisconnectionError

        engine.connect().close()
        engine.connect().close()
        case.assert_true(checkouts=2, checkins=2, connects=2, invalidations__hard=1, closes__error=1)

    case.run(scenario)


def test_listener_that_never_likes_the_connection(case: Case) -> None:
    """If SQLAlchemy gives up reconnecting, the checkout counts as an error and nothing stays in use."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "checkout")
        def check(*_: object) -> None:
            raise exc.DisconnectionError

        with pytest.raises(exc.InvalidRequestError):
            engine.connect()
        counted = case.now().counters(case.name)
        assert counted["checkout_errors.other"] == 1
        assert "checkouts" not in counted
        assert "checkins" not in counted
        assert metric_state(case.now(), case.name) == pool_state(engine.pool)
        assert_log_agrees(case.now(), case.name, case.log)
        case.assert_server_agrees()

    case.run(scenario)


def test_listener_that_raises(case: Case) -> None:
    """Any other exception of a ``checkout`` listener fails the checkout; the connection's close has reason "error"."""

    def scenario(case: Case) -> None:
        engine = case.start()
        engine.connect().close()

        @event.listens_for(engine, "checkout")
        def fail(*_: object) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            engine.connect()
        case.assert_true(
            checkouts=1,
            checkins=1,
            connects=1,
            checkout_errors__other=1,
            invalidations__hard=1,
            closes__error=1,
            checkout_wait_seconds_count=2,
        )

    case.run(scenario)


def test_reset_on_return_that_fails(case: Case) -> None:
    """A connection whose reset fails is invalidated, and its return is counted."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "reset")
        def fail(*_: object) -> None:
            raise LookupError

        engine.connect().close()
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__hard=1, closes__error=1)

    case.run(scenario)
