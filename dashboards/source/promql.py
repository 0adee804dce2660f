# SPDX-License-Identifier: Apache-2.0
"""Build the queries: selectors that use the dashboards' variables, and common expressions.

The states of a pool have the label ``worker`` behind the sidecar, but not in an application that Prometheus scrapes
directly. Counters have it in neither case, unless ``counters_per_worker`` is set. So only selectors of states use the
variable ``worker``. Its "All" is a pattern that also matches an absent label.
"""

from __future__ import annotations

from sqlalchemy_pool_exporter.metrics import PREFIX

# A fleet can be spread over clusters and namespaces.
FLEET = 'cluster=~"$cluster", namespace=~"$namespace"'
TARGET = f'{FLEET}, job=~"$job", instance=~"$instance"'
# The names of all alerts in this project's rules begin with SQLAlchemyPool.
_FIRING = 'alertname=~"SQLAlchemyPool.+", alertstate="firing"'
# Alerts on a service or a database have no instance. The `|` matches an absent label, which equals an empty one.
ALERTS = f'ALERTS{{{FLEET}, job=~"$job|", instance=~"$instance|", {_FIRING}}}'
ALERTS_OF_FLEET = f'ALERTS{{{FLEET}, job=~"$job|", {_FIRING}}}'
IN_USE = 'state="in_use"'
SHOWN = 10
FEW = f"The {SHOWN} largest are shown."
WORKERS = 'worker=~"$worker"'
_OF_WORKER = 'worker!=""'
# The labels that identify a pool in one process.
PROCESS = "job, instance, pool, worker"


def exporter(name: str, *matchers: str) -> str:
    """Select a metric of the chosen targets."""
    return f"{PREFIX}{name}{{{', '.join((TARGET, *matchers))}}}"


def alerts_of_targets(severity: str) -> str:
    """Select the alerts of the chosen targets that fire with a severity."""
    return f'ALERTS{{{TARGET}, {_FIRING}, severity="{severity}"}}'


def targets_up() -> str:
    """Return the share of targets that answer, of those that have shown pools and are still to be scraped, 0 to 1."""
    return f"avg(up{{{TARGET}}} and on (job, instance) last_over_time({exporter('exporter_build_info')}[1h]))"


def pool(name: str, *matchers: str) -> str:
    """Select a metric of the chosen pools."""
    return exporter(name, 'pool=~"$pool"', *matchers)


def state(name: str, *matchers: str) -> str:
    """Select a state of the chosen pools in the chosen workers."""
    return pool(name, WORKERS, *matchers)


def database(name: str, *matchers: str) -> str:
    """Select a metric of the chosen databases."""
    return exporter(f"database_{name}", 'database=~"$database"', *matchers)


def rate(selector: str) -> str:
    """Return the increase per second of a counter."""
    return f"rate({selector}[$__rate_interval])"


def buckets(histogram: str) -> str:
    """Return the increase per second of the buckets of one of the pools' histograms."""
    return rate(pool(f"{histogram}_bucket"))


def limit(*, of_chosen_workers: bool) -> str:
    """Return how many connections one process can have in use.

    Behind the sidecar, ``capacity`` is the sum over all workers, so the limit of one worker is its size plus its max
    overflow. Without the label ``worker``, ``capacity`` is that of one process. A pool without a limit has no series.
    """
    select = state if of_chosen_workers else pool
    of_worker = f"{select('size', _OF_WORKER)} + {select('max_overflow', _OF_WORKER)}"
    return f"({of_worker} or ({pool('capacity')} unless ignoring (worker) {pool('size', _OF_WORKER)}))"


def fullness(*, of_chosen_workers: bool) -> str:
    """Return the share of its connections that each process has in use, 0 to 1."""
    select = state if of_chosen_workers else pool
    return f"{select('connections', IN_USE)} / ignoring (state) {limit(of_chosen_workers=of_chosen_workers)}"


def stuck(*, of_chosen_workers: bool) -> str:
    """Return for how long each process that is full has got no connection back, in seconds; 0 while it is not full.

    Where none ever came back, it is the age of the oldest checkout.
    """
    select = state if of_chosen_workers else pool
    since = f"(time() - ({select('last_checkin_timestamp_seconds')} > 0) or {select('longest_held_seconds')})"
    is_full = f"({fullness(of_chosen_workers=of_chosen_workers)} >= bool 1)"
    return f"{since} * {is_full}"


def largest(labels: str, expr: str) -> str:
    """Return the largest series: a fleet has thousands of processes, too many for one graph.

    They are chosen first. To make new labels for thousands takes Prometheus ten times as long.
    """
    return f"max by ({labels}) ({top(expr)})"


def top(expr: str) -> str:
    """Return as many of the largest series as a graph and its colours can show."""
    return f"topk({SHOWN}, {expr})"
