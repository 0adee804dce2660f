# SPDX-License-Identifier: Apache-2.0
"""The drivers with which the tests of real pools run."""

from __future__ import annotations

SYNC = ("psycopg", "sqlite")
ASYNC = ("asyncpg", "psycopg_async", "aiosqlite")
WITH_SERVER = ("psycopg", "asyncpg", "psycopg_async")
DRIVERS = (*SYNC, *ASYNC)
