# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the board's tests: simulated processes, and the board of their directory."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pytest

from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from tests.support.boards import Directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As with programs: without it these tests are left out, and fail if REQUIRE_TOOLS is set.
_IS_TESTED_IN_BROWSER = find_spec("playwright") is not None or "REQUIRE_TOOLS" in os.environ
collect_ignore = [] if _IS_TESTED_IN_BROWSER else ["test_browser.py"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have no pools in other registries.

    An endpoint leaves out of its directory the names that its process shows in another registry. A test that ran
    before in this process may have left a pool, and many tests call theirs ``orders``, too.
    """
    monkeypatch.setattr(INSTRUMENTED, "_collectors", WeakKeyDictionary())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    """Return a directory without processes; those that a test makes are killed at the end."""
    with Directory.opened(tmp_path) as opened:
        yield opened
