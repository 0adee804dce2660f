# SPDX-License-Identifier: Apache-2.0
"""Connections to SQLite in memory, for tests that leave them open."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

# Python warns when a connection to SQLite is collected open, which these tests cause on purpose.
LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore:unclosed database:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def creator() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)
