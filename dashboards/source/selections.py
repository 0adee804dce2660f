# SPDX-License-Identifier: Apache-2.0
"""Queries that several rows of the Pool dashboard have in common."""

from __future__ import annotations

from .panels import Query
from .promql import PROCESS, largest, pool, rate

NAME = "{{instance}} {{pool}} {{worker}}"


def of_processes(expr: str) -> Query:
    """Return a query of the processes with the largest values, one series for each process."""
    return Query(largest(PROCESS, expr), NAME)


def total(counter: str) -> str:
    """Return the increase per second of a counter, summed over all processes."""
    return f"sum({rate(pool(counter))})"


def seconds_of(histogram: str) -> str:
    """Return the seconds spent in a phase per second, summed over all processes."""
    return total(f"{histogram}_sum")
