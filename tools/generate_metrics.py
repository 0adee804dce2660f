# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/metrics.md`` and the generated parts of ``README.md`` from the declarations of the metrics."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    BUCKETS,
    DATABASE_METRICS,
    EXPORTER_METRICS,
    FLEET_METRICS,
    OTLP_METRICS,
    POOL_METRICS,
    PROBED_POOL_METRICS,
    PROCESS_METRICS,
    RELOAD_METRICS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_pool_exporter.metrics import Metric

ROOT = Path(__file__).parents[1]
# The metrics in the README's excerpt. Ages are left out because they differ in each run.
SHOWN = (
    "sqlalchemy_pool_capacity",
    "sqlalchemy_pool_connections",
    "sqlalchemy_pool_overflow_connections",
    "sqlalchemy_pool_pending_checkouts",
    "sqlalchemy_pool_checkouts_total",
    "sqlalchemy_pool_checkout_timeouts_total",
    "sqlalchemy_pool_overflow_opened_total",
)


def table(metrics: Iterable[Metric]) -> str:
    """Return a Markdown table of metrics."""
    rows = ["| name | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        if metric.values:
            labels = f"`{metric.labels[0]}` = " + ", ".join(f"`{value}`" for value in metric.values)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"


def metrics_reference() -> str:
    """Return the whole of docs/metrics.md."""
    buckets = ", ".join(f"{bound:g}" for bound in BUCKETS)
    return f"""<!-- Written by `python -m tools.generate_metrics` from the catalogue; change it there. -->
# Metrics

## Of each pool

Each has the label `pool`, and the ones named. Counters and histograms are there, at 0, from the moment a pool is
instrumented. What does not apply to a pool is absent: a limit it does not have, overflow where there is none.
The histograms' buckets end at {buckets} seconds and +Inf.

{table(POOL_METRICS)}
## Of each process

In the application and in the sidecar. `worker` is the number of the process's file, which
`sqlalchemy_pool_exporter_worker_info` explains; an application without a directory shows its own process, without that
label. See [event loops](holders.md#event-loops).

{table(PROCESS_METRICS)}
## Of the exporter

In the application and in the sidecar:

{table(EXPORTER_METRICS)}
In the application alone:

{table(APPLICATION_METRICS)}
In the sidecar alone:

{table((*FLEET_METRICS, *RELOAD_METRICS, *OTLP_METRICS))}
## Of each database

What the sidecar's [probes](databases.md) see. Each has the label `database`, and the ones named. What cannot be known
is absent, never 0.

{table(DATABASE_METRICS)}
And of each pool that connects to a probed database, with the label `pool`:

{table(PROBED_POOL_METRICS)}
## Which pools have a name

* Pools of one name are one set of series. Pools of one default name that differ in class or limits have a suffix from
  what differs until the others have left. All metrics of a scrape agree on the suffix; with
  `SQLALCHEMY_POOL_EXPORTER_SIDECAR` the application knows only its own pools, so
  `sqlalchemy_pool_exporter_segment_shared` can lack a suffix that the sidecar shows. `name=` never has one.
* A name that no live pool has had for an hour leaves, and so does the oldest of more than 64 such names; a later pool
  of that name counts from 0. An engine that is disposed of still has a pool, so its name stays for as long as the
  application keeps the engine, however rarely it is used. There is no setting for the hour: the processes and the
  sidecar would have to agree on it.

## How they add up

* Every checkout ends as one return or one detach: `checkouts_total` = `checkins_total` + `detaches_total` + in use, for
  a pool that was instrumented before its first checkout. `leaked_checkouts_total` counts those among the ended ones
  that the garbage collector ended. A connection whose record is lost while it is out ends as a leak alone.
* Every call of `connect()` ends as one checkout, one timeout or one error: `checkout_wait_seconds_count` =
  `checkouts_total` + `checkout_timeouts_total` + all of `checkout_errors_total`.
* The time spent in the queue is `checkout_wait_seconds_sum` less `connect_seconds_sum` and `ping_seconds_sum`.
* `connections` (idle) + `empty_slots` is SQLAlchemy's `checkedin()`, `connections` (in use) its `checkedout()`; both
  states together are what the server has, except for detached connections, which belong to no pool.
* Connections that were out already when a pool was instrumented are in use from then on, held since then; their
  returns count, their checkouts and holds do not.
"""


def excerpt() -> str:
    """Return what a pool exposes while all its connections are out and two callers wait."""
    registry = CollectorRegistry()
    creator: Any = lambda: sqlite3.connect(":memory:", check_same_thread=False)  # noqa: E731
    pool = QueuePool(creator, pool_size=2, max_overflow=1)
    with instrument(pool, name="orders", registry=registry):
        out = [pool.connect() for _ in range(3)]
        callers = [threading.Thread(target=lambda: pool.connect().close()) for _ in range(2)]
        for caller in callers:
            caller.start()
        while 'pending_checkouts{pool="orders"} 2.0' not in (text := generate_latest(registry).decode()):
            time.sleep(0.01)
        for connection in out:
            connection.close()
        for caller in callers:
            caller.join()
        pool.dispose()
    lines = [line for line in text.splitlines() if line.startswith(tuple(f"{name}{{" for name in SHOWN))]
    return "\n".join(["```text", *lines, "```"]) + "\n"


def readme() -> str:
    """Return README.md with its generated parts replaced."""
    text = (ROOT / "README.md").read_text()
    for name, content in (("excerpt", excerpt()), ("metrics", table(POOL_METRICS))):
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, rest = text.split(start, 1)
        text = f"{before}{start}{content}{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(metrics_reference())
    (ROOT / "README.md").write_text(readme())
