# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the board's tests: simulated processes, and the board of their directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.boards import Directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    """Return a directory without processes; those that a test makes are killed at the end."""
    with Directory.opened(tmp_path) as opened:
        yield opened
