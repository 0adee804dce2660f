# SPDX-License-Identifier: Apache-2.0
"""The queries' building blocks: selectors that follow the dashboards' variables, and what is asked of them often.

A pool's state has the label ``worker`` behind the sidecar and none in an application that is scraped itself, counters
have it in neither (unless ``counters_per_worker`` is set). So only states follow the variable ``worker``, whose "All"
is a pattern that an absent label matches too.
"""

from __future__ import annotations

from sqlalchemy_pool_exporter.metrics import PREFIX

TARGET = 'job=~"$job", instance=~"$instance"'
# Those of the rules, which all begin so.
_FIRING = 'alertname=~"SQLAlchemyPool.+", alertstate="firing"'
ALERTS_OF_TARGETS = f"ALERTS{{{TARGET}, {_FIRING}}}"
# Some are about a service or a database and have no instance; an absent label is an empty one, hence the `|`.
ALERTS = f'ALERTS{{job=~"$job|", instance=~"$instance|", {_FIRING}}}'
IN_USE = 'state="in_use"'
_OF_WORKER = 'worker!=""'
# What one process is told by.
PROCESS = "job, instance, pool, worker"


def exporter(name: str, *matchers: str) -> str:
    """Select a metric of the chosen targets."""
    return f"{PREFIX}{name}{{{', '.join((TARGET, *matchers))}}}"


def pool(name: str, *matchers: str) -> str:
    """Select a metric of the chosen pools."""
    return exporter(name, 'pool=~"$pool"', *matchers)


def state(name: str, *matchers: str) -> str:
    """Select a state of the chosen pools in the chosen workers."""
    return pool(name, 'worker=~"$worker"', *matchers)


def database(name: str, *matchers: str) -> str:
    """Select a metric of the chosen databases."""
    return exporter(f"database_{name}", 'database=~"$database"', *matchers)


def rate(selector: str) -> str:
    """Return the increase per second of a counter."""
    return f"rate({selector}[$__rate_interval])"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """Return a quantile of one of the pools' histograms, of all of them together or by labels."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q:g}, sum by ({labels}) ({rate(pool(f'{histogram}_bucket'))}))"


def limit(*, of_chosen_workers: bool) -> str:
    """Return how many connections one process can have in use.

    Behind the sidecar ``capacity`` is that of all workers together, and what one worker has is its size and its
    overflow. Without the label ``worker`` it belongs to the same processes as the states. Absent where nothing limits
    the pool.
    """
    select = state if of_chosen_workers else pool
    of_worker = f"{select('size', _OF_WORKER)} + {select('max_overflow', _OF_WORKER)}"
    return f"({of_worker} or ({pool('capacity')} unless ignoring (worker) {pool('size', _OF_WORKER)}))"


def fullness(*, of_chosen_workers: bool) -> str:
    """Return the share of its connections that each process has in use, 0 to 1."""
    select = state if of_chosen_workers else pool
    return f"{select('connections', IN_USE)} / ignoring (state) {limit(of_chosen_workers=of_chosen_workers)}"


def largest(labels: str, number: int, expr: str) -> str:
    """Return the largest few, since a fleet has thousands of processes and a graph has room for some."""
    return f"topk({number}, max by ({labels}) ({expr}))"
