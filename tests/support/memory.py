# SPDX-License-Identifier: Apache-2.0
"""Connections to SQLite in memory, for tests that leave them open."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

# SQLite's connections say so when they are collected open; here they are left to be.
LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore:unclosed database:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def creator() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)
