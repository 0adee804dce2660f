# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the terminal's tests: simulated processes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.support.segments import Process, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# As with programs: without it these tests are left out, and fail if REQUIRE_TOOLS is set.
_HAS_TEXTUAL = find_spec("textual") is not None or "REQUIRE_TOOLS" in os.environ
collect_ignore = [] if _HAS_TEXTUAL else ["test_screen.py"]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that makes processes, which are killed at the end."""
    with processes(tmp_path) as make:
        yield make
