# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, in whatever order, from several threads or tasks: the numbers are true after each step.

Hypothesis mixes the incidents; after each one the metrics are held against the pool itself, SQLAlchemy's own pool log,
the server, and a model of the pool (see reference).
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
    """Collect garbage only where the test says so, and only the test's own."""
    # What a listener raises in a finalizer would be kept for the report, and with it the connection.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    original = sqlalchemy_queue._time
    # Before Python 3.14 asyncio makes an event loop for whoever asks where none was ever set, such as aiosqlite for a
    # connection that is collected. Nobody would run that loop, or close it.
    asyncio.set_event_loop(None)
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    gc.collect()  # what is complained of here is what SQLAlchemy did not close
    sqlalchemy_queue._time = original


# The same incidents each time, so that a failure is found by the change that made it.
_ALWAYS: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "derandomize": True}
FEW = settings(max_examples=50, stateful_step_count=40, **_ALWAYS)
MANY = settings(max_examples=300, stateful_step_count=60, **_ALWAYS)


def _run(driver: str, server: Server, directory: Path, how: settings) -> None:
    class Here(Incidents):
        def __init__(self) -> None:
            super().__init__(driver, server, directory)

    run_state_machine_as_test(Here, settings=how)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("driver", DRIVERS)
def test_numbers_are_true_whatever_happens(driver: str, server: Server, tmp_path: Path, frozen: None) -> None:
    """After each of any incidents in any order the metrics equal the pool, its log, the server and the model."""
    _run(driver, server, tmp_path, FEW)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("driver", DRIVERS)
def test_numbers_stay_true(driver: str, server: Server, tmp_path: Path, frozen: None) -> None:
    """The same, for minutes."""
    _run(driver, server, tmp_path, MANY)
