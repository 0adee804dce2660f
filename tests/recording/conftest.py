# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of ``recording``."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter.recording import at_fork, labels
from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.page import LABELS
from tests.support.drivers import DRIVERS
from tests.support.pool_case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pg import Server


@pytest.fixture(scope="module")
def little_to_collect() -> None:
    # These tests run thousands of collections; freeze what earlier tests left, so that no collection scans it. What
    # those left open is no matter of the test that comes next.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the children that earlier tests forked: a scrape warns of them."""
    monkeypatch.setattr(at_fork._state, "children", 0)


@pytest.fixture
def room_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the labels of earlier tests, since a process has room for few, and one may have been left."""
    monkeypatch.setitem(texts._texts.numbers, LABELS, {})
    labels.current_label.set(labels.NO_LABEL)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def leave_nothing() -> Iterator[None]:
    # Collect here, so that SQLite's warning about an open connection is reported in the test that left it open.
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def case(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Case]:
    """A test case for each driver; the test starts its engine."""
    yield Case(request.param, server, tmp_path)
    gc.collect()


@pytest.fixture
def server_case(case: Case) -> Case:
    """A test case for each driver that has a database server, so that the test can kill connections."""
    if not case.has_server:
        pytest.skip("no server")
    return case
