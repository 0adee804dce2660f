# SPDX-License-Identifier: Apache-2.0
"""The advice for all pools, as text and as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.top.columns import printable

from . import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .advice import Advice, Objective
    from .fleet import Fit
    from .histogram import Histogram

VERSION: Final = 1
METHOD: Final = (
    "replay by simulation: Poisson arrivals at the observed rate in each process, hold times drawn from the observed "
    "histogram, SQLAlchemy's queue, a fixed seed"
)
_QUANTILES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Report:
    """The advice for all pools."""

    how: str
    objective: Objective
    reserve: float
    advices: list[Advice]
    fits: list[Fit]

    @property
    def unknown(self) -> list[str]:
        """The pools whose server is not known."""
        return [one.observed.pool for one in self.advices if one.server is None]


def text(report: Report) -> str:
    """Return the report for people."""
    return "".join(f"{printable(line)}\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    objective = report.objective
    yield (
        f"{report.how}; objective: {words.share(objective)} of the callers wait at most "
        f"{words.fine(objective.wait_seconds)}"
    )
    for advice in report.advices:
        yield ""
        yield f"{advice.observed.pool}: {_headline(advice)}"
        for sentence in _sentences(advice, objective):
            yield f"  {sentence}"
    for fit in report.fits:
        yield ""
        yield f"server of {', '.join(fit.pools)}:"
        for sentence in words.fleet(fit, report.reserve, objective):
            yield f"  {sentence}"
    if report.unknown:
        yield ""
        yield words.unknown(report.unknown)
    yield ""
    yield f"({METHOD})"


def _sentences(advice: Advice, objective: Objective) -> Iterator[str]:
    return chain(
        words.traffic(advice),
        words.size(advice, objective),
        words.timeout(advice),
        words.recycling(advice),
    )


def _headline(advice: Advice) -> str:
    """Return the settings that are advised, as ``create_engine()`` takes them."""
    parts = []
    if advice.pool_size is not None:
        least = "at least " if advice.is_lower_bound else ""
        parts.append(f"{least}pool_size={advice.pool_size}, max_overflow={advice.max_overflow}")
    if advice.pool_timeout_seconds is not None:
        parts.append(f"pool_timeout={advice.pool_timeout_seconds:g}")
    if advice.pool_recycle_seconds is not None and not math.isinf(advice.pool_recycle_seconds):
        parts.append(f"pool_recycle={advice.pool_recycle_seconds:g}")
    seen = advice.observed
    if seen.size is None:
        now = ", ".join(sorted(seen.classes)) or "no limit"
    else:
        overflow = "-1" if seen.max_overflow is None else f"{seen.max_overflow:g}"
        now = f"pool_size={seen.size:g}, max_overflow={overflow}"
    return f"{', '.join(parts) or 'nothing to change'} (now {now})"


def as_json(report: Report) -> dict[str, Any]:
    """Return the report for programs; what is unknown or has no limit is null."""
    objective = report.objective
    return {
        "version": VERSION,
        "source": report.how,
        "method": METHOD,
        "objective": {
            "wait_seconds": objective.wait_seconds,
            "share": objective.share,
            "burst": objective.burst,
        },
        "pools": [_pool(one, objective) for one in report.advices],
        "servers": [_server(one, report) for one in report.fits],
        "pools_of_unknown_servers": report.unknown,
    }


def _pool(advice: Advice, objective: Objective) -> dict[str, Any]:
    seen = advice.observed
    return {
        "pool": seen.pool,
        "kind": seen.kind,
        "observed": {
            "end": seen.at,
            "seconds": seen.seconds,
            "instances": seen.instances,
            "most_instances": seen.most_instances,
            "arrivals_per_second": seen.rate,
            "arrivals_per_second_of_one": seen.rate_of_one,
            "hold_seconds": _histogram(seen.holds),
            "wait_seconds": _histogram(seen.waits),
            "connect_seconds_mean": seen.connects.mean if seen.connects.number else None,
            "in_use": seen.in_use,
            "utilisation": seen.utilisation,
            "checkout_timeouts": seen.timeouts,
            "is_saturated": seen.is_saturated,
        },
        "now": {
            "pool_size": seen.size,
            "max_overflow": seen.max_overflow,
            "pool_timeout_seconds": seen.timeout_seconds,
            "pool_recycle_seconds": seen.recycle_seconds,
            "predicted_wait_seconds": _finite(advice.predicted_now_seconds),
        },
        "advice": {
            "pool_size": advice.pool_size,
            "max_overflow": advice.max_overflow,
            "pool_timeout_seconds": advice.pool_timeout_seconds,
            "pool_recycle_seconds": _finite(advice.pool_recycle_seconds),
            "predicted_wait_seconds": _finite(advice.predicted_seconds),
            "is_lower_bound": advice.is_lower_bound,
        },
        "reasons": list(_sentences(advice, objective)),
    }


def _histogram(histogram: Histogram) -> dict[str, float]:
    quantiles = {f"p{100 * share:g}": histogram.quantile(share) for share in _QUANTILES}
    return {"count": histogram.number, "mean": histogram.mean, "spread": histogram.spread, **quantiles}


def _server(fit: Fit, report: Report) -> dict[str, Any]:
    server = fit.server
    return {
        "databases": server.name,
        "pools": list(fit.pools),
        "max_connections": server.max_connections,
        "reserved_connections": server.reserved,
        "reserve": report.reserve,
        "other_connections": fit.others,
        "usable": fit.usable,
        "connections_now": _finite(fit.now),
        "connections_advised": _finite(fit.advised),
        "unlimited": list(fit.unlimited),
        "fits": None if server.is_behind_pooler else fit.fits,
        "room": [
            {
                "pool": one.pool,
                "connections": one.connections,
                "predicted_wait_seconds": _finite(one.predicted_seconds),
            }
            for one in fit.rooms
        ],
        "reasons": list(words.fleet(fit, report.reserve, report.objective)),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
