# SPDX-License-Identifier: Apache-2.0
"""Reads a Prometheus server: each pool in its busiest window of a range."""

from __future__ import annotations

import json
import math
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.board.words import duration
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.metrics import PREFIX
from sqlalchemy_pool_exporter.top.client import Client, explained
from sqlalchemy_pool_exporter.top.columns import printable

from .observation import observations, servers
from .source import Watched
from .table import Sample, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy_pool_exporter.top.client import Credentials

    from .observation import Observation

_API: Final = "/api/v1"
_SUFFIXES: Final = ("/api/v1/query", "/graph", "/query", _API, "/")
_STEPS_OF_A_WINDOW: Final = 20.0
_MOST_STEPS: Final = 10_000  # Prometheus answers with 11,000 at most
_NAME: Final = "metric"  # the label that tells the parts of one query apart

# The labels by which each is summed.
_COUNTERS: Final = {
    "checkouts_total": (),
    "checkout_timeouts_total": (),
    "checkout_errors_total": ("reason",),
    "closes_total": ("reason",),
    **{
        f"{name}_{part}": labels
        for name in ("hold_seconds", "checkout_wait_seconds", "connect_seconds", "ping_seconds")
        for part, labels in (("bucket", ("le",)), ("sum", ()), ("count", ()))
    },
}
_SUMS: Final = ("instances", "size", "max_overflow", "connections")
_LEASTS: Final = ("timeout_seconds", "recycle_seconds", "pre_ping")
_OF_DATABASES: Final = (
    "max_connections",
    "reserved_connections",
    "behind_pooler",
    "idle_session_timeout_seconds",
)
# What tells apart what is scraped; each of these is a host or a process.
_TARGET: Final = "pool, job, instance"


class Span(NamedTuple):
    """What to look at: windows of so many seconds in the range that ends now."""

    range: float
    window: float


class Prometheus:
    """A Prometheus server, or what has its API, such as Thanos, Mimir or VictoriaMetrics.

    Args:
        url: of the server, with its prefix if it has one.
        credentials: for the server.
        match: selectors of labels that all series must have, such as ``job="orders"``.

    Raises:
        BoardError: it is no such URL, or a file of the credentials cannot be used.
    """

    def __init__(self, url: str, credentials: Credentials, match: str = "") -> None:
        self._client = Client(url, credentials, suffixes=_SUFFIXES)
        self._match = match.strip().strip("{}").strip(", ")
        self.name = self._client.name

    def watch(self, span: Span, *, wall: Callable[[], float] = time.time) -> Watched:
        """Return each pool in its busiest window: the one with the most connections in use, on average.

        Raises:
            BoardError: it does not answer, refuses a query, or knows no pool.
        """
        now = wall()
        busiest = self._busiest_windows(span, now)
        if not busiest:
            raise BoardError(
                f"{self.name} knows no pool in the last {duration(span.range)}"
                + (f" with {{{self._match}}}" if self._match else "")
            )
        state = self._ask(_union(self._databases()), now)
        latest = self._ask(_union(self._gauges("")), now)
        found = [
            one for pool, at in sorted(busiest.items()) for one in self._observed(pool, at, span, now, latest)
        ]
        how = f"{self.name}, each pool in its busiest {duration(span.window)} of the last {duration(span.range)}"
        return Watched(found, list(servers(state)), how)

    def _busiest_windows(self, span: Span, now: float) -> dict[str, float]:
        """Return the end of the busiest window of each pool."""
        step = max(span.window, span.range / _MOST_STEPS)
        series = self._data(
            "query_range",
            query=f"sum by (pool) (rate({self._series('hold_seconds_sum')}[{_seconds(span.window)}]))",
            # The first window begins with the range.
            start=repr(now - max(0.0, span.range - span.window)),
            end=repr(now),
            step=repr(step),
        )
        found: dict[str, float] = {}
        for one in series:
            pool = one["metric"].get("pool", "")
            if not pool:
                continue
            # Of equal ones the last, which is nearest to what the application is now.
            _, at = max((float(value), float(when)) for when, value in one["values"])
            found[pool] = at
        return found

    def _observed(self, pool: str, at: float, span: Span, now: float, latest: Table) -> Iterator[Observation]:
        window = _seconds(span.window)
        grown = self._ask(_union(self._increases(pool, window)), at)
        # What a process that ended within the window had at its end is not known at that of the window.
        lately = f"[{window}:{_seconds(max(1.0, span.window / _STEPS_OF_A_WINDOW))}]"
        states = ((name, f"last_over_time(({query}){lately})") for name, query in self._gauges(pool))
        gauges = self._ask(_union((*states, *self._fleet(pool, window))), at)
        most = self._ask(_union(self._most(pool, span)), now)
        for name in ("connections", "longest_held_seconds"):  # what they are now
            gauges[name] = [sample for sample in latest.get(name, ()) if sample.labels.get("pool") == pool]
        yield from observations(grown, Table(gauges | most), seconds=span.window, at=at)

    def _series(self, name: str, pool: str = "") -> str:
        matchers = [self._match] if self._match else []
        if pool:
            matchers.append(f"pool={json.dumps(pool, ensure_ascii=False)}")
        return f"{PREFIX}{name}{{{','.join(matchers)}}}"

    def _increases(self, pool: str, window: str) -> Iterator[tuple[str, str]]:
        for name, labels in _COUNTERS.items():
            by = ", ".join(("pool", *labels))
            yield name, f"sum by ({by}) (increase({self._series(name, pool)}[{window}]))"

    def _gauges(self, pool: str) -> Iterator[tuple[str, str]]:
        for name in _SUMS:
            yield name, f"sum by (pool) ({self._series(name, pool)})"
        for name in ("size", "max_overflow"):
            lacking = f"{self._series('instances', pool)} unless {self._series(name, pool)}"
            yield f"without_{name}", f"count by (pool) ({lacking})"
        for name in _LEASTS:
            yield name, f"min by (pool) ({self._series(name, pool)})"
        yield "longest_held_seconds", f"max by (pool) ({self._series('longest_held_seconds', pool)})"
        yield "info", f"max by (pool, pool_class, dialect) ({self._series('info', pool)})"

    def _fleet(self, pool: str, window: str) -> Iterator[tuple[str, str]]:
        rates = f"sum by ({_TARGET}) (rate({self._series('checkouts_total', pool)}[{window}]))"
        instances = f"sum by ({_TARGET}) ({self._series('instances', pool)})"
        yield "busiest", f"max by (pool) ({rates} / {instances})"

    def _most(self, pool: str, span: Span) -> Iterator[tuple[str, str]]:
        """Yield what is of the whole range: how many pools there were, and how long it took to connect."""
        instances = f"sum by (pool) ({self._series('instances', pool)})"
        step = _seconds(max(span.window, span.range / _MOST_STEPS))
        yield "most_instances", f"max_over_time({instances}[{_seconds(span.range)}:{step}])"
        for part, by in (("bucket", "pool, le"), ("sum", "pool")):
            series = self._series(f"connect_seconds_{part}", pool)
            yield f"connect_seconds_{part}", f"sum by ({by}) (increase({series}[{_seconds(span.range)}]))"

    def _databases(self) -> Iterator[tuple[str, str]]:
        for name in _OF_DATABASES:
            key = f"database_{name}"
            yield key, f"max by (database) ({self._series(key)})"
        connections = self._series("database_connections")
        yield (
            "database_connections",
            f"max by (database) (sum by (database, job, instance) ({connections}))",
        )
        yield "database_pool_info", f"max by (database, pool) ({self._series('database_pool_info')})"
        yield "database_server_info", f"max by (database, server) ({self._series('database_server_info')})"

    def _ask(self, query: str, at: float) -> Table:
        table = Table()
        for one in self._data("query", query=query, time=repr(at)):
            labels = dict(one["metric"])
            value = float(one["value"][1])
            if math.isfinite(value):  # not NaN, such as 0 / 0
                table.setdefault(labels.pop(_NAME, ""), []).append(Sample(labels, value))
        return table

    def _data(self, path: str, **parameters: str) -> list[Any]:
        status, body = self._client.post(f"{_API}/{path}", parameters)
        try:
            answer: Any = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or "status" not in answer:
            if status != HTTPStatus.OK:
                raise BoardError(f"{self.name} answers {status} {explained(status)}")
            raise BoardError(f"{self.name} answers with something else than Prometheus does")
        if answer["status"] != "success":
            why = printable(str(answer.get("error", "it does not say why")))
            raise BoardError(f"{self.name} refuses a query: {why}")
        if not _is_result(answer.get("data"), "values" if path == "query_range" else "value"):
            raise BoardError(f"{self.name} answers with something else than Prometheus does")
        result: list[Any] = answer["data"]["result"]
        return result


def _is_result(data: Any, values: str) -> bool:
    """Return whether an answer has series with values; those of native histograms have none."""
    return (
        isinstance(data, dict)
        and isinstance(data.get("result"), list)
        and all(
            isinstance(one, dict) and isinstance(one.get("metric"), dict) and bool(one.get(values))
            for one in data["result"]
        )
    )


def _union(parts: Iterable[tuple[str, str]]) -> str:
    """Return one query for several metrics, each with its name as a label."""
    return " or ".join(f'label_replace({query}, "{_NAME}", "{name}", "", "")' for name, query in parts)


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole}s" if whole == seconds else f"{max(1, round(1000.0 * seconds))}ms"
