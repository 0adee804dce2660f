# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the recording."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from tests.support.drivers import DRIVERS
from tests.support.pool_case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pg import Server


@pytest.fixture(scope="module")
def little_to_collect() -> Iterator[None]:
    # Thousands of collections are asked for below; what is there before need not be looked at in each.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def leave_nothing() -> Iterator[None]:
    # What SQLite complains of is the complaint of the test that left it open.
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def case(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Case]:
    """An engine of each driver to be made."""
    yield Case(request.param, server, tmp_path)
    gc.collect()


@pytest.fixture
def server_case(case: Case) -> Case:
    """An engine of each driver that has a server to kill its connections."""
    if not case.has_server:
        pytest.skip("no server")
    return case
