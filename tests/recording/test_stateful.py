# SPDX-License-Identifier: Apache-2.0
"""The metrics are correct after each of many random incidents, from several threads or tasks.

Hypothesis chooses the incidents. After each one the test compares the metrics with the pool itself, SQLAlchemy's pool
log, the server, and a model of the pool (see reference).
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.callers import sqlalchemy_queue
from tests.support.drivers import DRIVERS
from tests.support.pool_operations import Incidents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pg import Server


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect garbage only where the test asks for it, and only objects that the test made."""
    # pytest would keep an exception that a listener raises in a finalizer, and with it the connection.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    original = sqlalchemy_queue._time
    # Before Python 3.14 asyncio makes an event loop on request if none was ever set. aiosqlite requests one when a
    # connection is collected, and that loop would neither run nor be closed.
    asyncio.set_event_loop(None)
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    gc.collect()  # a warning here is about a connection that SQLAlchemy did not close
    gc.freeze()
    sqlalchemy_queue._time = original


# Derandomized: the incidents are the same in each run, so a new failure comes from a change of the code.
_ALWAYS: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "derandomize": True}
FEW = settings(max_examples=12, stateful_step_count=40, **_ALWAYS)
MANY = settings(max_examples=150, stateful_step_count=60, **_ALWAYS)


def _run(driver: str, server: Server, directory: Path, how: settings) -> None:
    class Here(Incidents):
        def __init__(self) -> None:
            super().__init__(driver, server, directory)

    run_state_machine_as_test(Here, settings=how)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("driver", DRIVERS)
def test_numbers_are_true_whatever_happens(driver: str, server: Server, tmp_path: Path, frozen: None) -> None:
    """After each random incident the metrics agree with the pool, its log, the server and the model."""
    _run(driver, server, tmp_path, FEW)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("driver", DRIVERS)
def test_numbers_stay_true(driver: str, server: Server, tmp_path: Path, frozen: None) -> None:
    """The same test, with more and longer runs."""
    _run(driver, server, tmp_path, MANY)
