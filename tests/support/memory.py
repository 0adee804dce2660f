# SPDX-License-Identifier: Apache-2.0
"""Connections to SQLite in memory, for tests that leave them open."""

from __future__ import annotations

import sqlite3
from typing import Any


def creator() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)
