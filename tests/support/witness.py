# SPDX-License-Identifier: Apache-2.0
"""Independent numbers to compare the metrics with: those of the pool itself and of SQLAlchemy's pool log."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter.metrics import PREFIX

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
    from tests.support.samples import RegistrySamples

# Phrases of SQLAlchemy's pool log, with the events that they report.
_PHRASES = {
    "Created new connection": "connects",
    "Error on connect()": "connect_errors",
    "Closing connection": "closes",
    "Hard-closing connection": "closes",
    "exceeded timeout; recycling": "recycle",
    "invalidated due to pool invalidation": "pool_invalidated",
    "invalidated due to local soft invalidation": "soft_invalidated",
    "Soft Invalidate connection": "soft",
    "Invalidate connection": "hard",
    "pre-ping on connection %s failed": "ping_failures",
    "checked out from pool": "checkouts",
}


class PoolLog(logging.Handler):
    """Counts the events in SQLAlchemy's log of one pool, recognized by its ``logging_name``."""

    def __init__(self, logging_name: str) -> None:
        super().__init__(logging.DEBUG)
        self._suffix = f".{logging_name}"
        self.counts: Counter[str] = Counter()
        self._logger = logging.getLogger("sqlalchemy.pool")

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.endswith(self._suffix):
            return
        # The message is not formatted, because that would call methods of the connections in its arguments.
        message = record.msg if isinstance(record.msg, str) else str(record.msg)
        if message.startswith("%s connection %r"):
            message = f"{record.args[0]} connection"  # type: ignore[index]
        elif message.startswith("%sInvalidate"):
            message = message.replace("%s", str(record.args[0]), 1)  # type: ignore[index]
        for phrase, event in _PHRASES.items():
            if phrase in message:
                self.counts[event] += 1
                break

    def __enter__(self) -> Self:
        self._level, self._propagate = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self._logger.propagate = self._propagate


def pool_state(pool: Pool) -> dict[str, float]:
    """Return the numbers that a QueuePool reports, under the names of the metrics."""
    assert isinstance(pool, QueuePool)
    return {
        "in_use": pool.checkedout(),
        "idle and empty": pool.checkedin(),
        "overflow": max(0, pool.overflow()),
    }


def metric_state(exposition: RegistrySamples, pool: str) -> dict[str, float]:
    """Return the same numbers of the metrics."""
    return {
        "in_use": exposition.value("connections", pool, state="in_use"),
        "idle and empty": exposition.value("connections", pool, state="idle")
        + exposition.value("empty_slots", pool),
        "overflow": exposition.value("overflow_connections", pool),
    }


def recorded_state(snapshot: Snapshot) -> dict[str, float]:
    """Return the same numbers of what is recorded, from which a scrape makes the metrics."""
    state: Any = snapshot.state(now=0.0, wall=0.0)
    return {
        "in_use": state["connections"]["in_use"],
        "idle and empty": state["connections"]["idle"] + state["empty_slots"],
        "overflow": state["overflow_connections"],
    }


def assert_log_agrees(exposition: RegistrySamples, pool: str, log: PoolLog) -> None:
    """Assert that the counters equal the events in SQLAlchemy's pool log."""
    counters = exposition.counters(pool)

    def closes(*reasons: str) -> float:
        return sum(counters.get(f"closes.{reason}", 0) for reason in reasons)

    ours = {
        "connects": counters.get("connects", 0),
        "connect_errors": counters.get("connect_errors", 0),
        "recycle": closes("recycle"),
        "pool_invalidated": closes("pool_invalidated"),
        "soft": counters.get("invalidations.soft", 0),
        "hard": counters.get("invalidations.hard", 0),
        "ping_failures": counters.get("ping_failures", 0),
    }
    assert {key: float(log.counts[key]) for key in ours} == ours
    # A close by the garbage collector is not logged; a close by SQLAlchemy during a collection is.
    closed = sum(value for key, value in counters.items() if key.startswith("closes."))
    assert closed - closes("gc", "dispose") <= log.counts["closes"] <= closed


def assert_sites_add_up(exposition: RegistrySamples, pool: str) -> None:
    """Assert that the sums over the sites of a pool are its totals, and that each state has as many sites as it has."""

    def total(name: str, *labels: tuple[str, str]) -> float:
        wanted = {("pool", pool), *labels}
        return sum(
            value
            for (metric, pairs), value in exposition.samples.items()
            if metric == PREFIX + name and wanted <= pairs
        )

    sums = {
        "checkouts": total("checkouts_by_site_total"),
        "holds": total("hold_seconds_by_site_count"),
        "leaked": total("leaked_checkouts_by_site_total"),
        "held": total("held_connections"),
    }
    totals = {
        "checkouts": total("checkouts_total"),
        "holds": total("hold_seconds_count"),
        "leaked": total("leaked_checkouts_total"),
        "held": total("connections", ("state", "in_use")),
    }
    # A pool of which no checkout was recorded has no sites.
    assert sums == totals or not (sums["checkouts"] or totals["checkouts"]), (sums, totals)
    seconds = (total("hold_seconds_by_site_sum"), total("hold_seconds_sum"))
    assert abs(seconds[0] - seconds[1]) <= 1e-6 * (1 + seconds[1]) or not totals["checkouts"]


def assert_errors_agree(exposition: RegistrySamples, pool: str) -> None:
    """Assert that the errors by layer, and the reports of timeouts, agree with the other counters."""
    counters, errors = exposition.counters(pool), exposition.errors(pool)
    by_layer = {
        layer: sum(value for key, value in errors.items() if key.startswith(f"{layer}."))
        for layer in ("pool", "connect", "ping")
    }
    timeouts = counters.get("checkout_timeouts", 0)
    assert by_layer["pool"] == timeouts
    assert by_layer["connect"] <= counters.get("connect_errors", 0)  # what was cancelled is no error
    assert by_layer["ping"] >= counters.get("ping_failures", 0)  # a ping that raises is one
    reports = exposition.value("exhaustion_reports_total", pool)
    assert bool(timeouts) == bool(reports)
    assert reports <= timeouts
