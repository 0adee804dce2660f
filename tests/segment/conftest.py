# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of ``segment``."""

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
    """An empty registry."""
    return CollectorRegistry()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory for segments, inside of ``tmp_path``."""
    directory = tmp_path / "segments"
    directory.mkdir()
    return directory


@pytest.fixture
def leases() -> Iterator[Callable[..., Lease]]:
    """A factory of leases; it closes them after the test."""
    with leasing() as make:
        yield make


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """A factory of processes; it kills them after the test."""
    with processes(tmp_path) as make:
        yield make
