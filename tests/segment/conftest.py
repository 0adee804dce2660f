# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from tests.support.segments import leasing, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter.segment.file import Lease
    from tests.support.segments import Process


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of its own."""
    return CollectorRegistry()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory for segments, in one that holds other things."""
    directory = tmp_path / "segments"
    directory.mkdir()
    return directory


@pytest.fixture
def leases() -> Iterator[Callable[..., Lease]]:
    """Makes leases that are given up at the end."""
    with leasing() as make:
        yield make


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Makes processes that are killed at the end."""
    with processes(tmp_path) as make:
        yield make
