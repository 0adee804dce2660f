# SPDX-License-Identifier: Apache-2.0
"""Scrape a fleet with a real Prometheus and time the dashboards: ``python -m benchmarks.fleet --targets 1000``.

It needs the program prometheus. One process answers the scrapes of all targets, with the exposition of real segments of
four pools in each of four workers. The time range of the graphs is what has been scraped, with as many points as an
hour's graph has; let it run for an hour (``--minutes 60``) to have all the samples of one as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Table, environment
from sqlalchemy_pool_exporter.metrics import BUCKETS, POOL_METRICS
from tests.support.prometheus import Prometheus
from tests.support.wait import eventually

from . import panels
from .exposition import Exposition, Shape
from .targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES = Path(__file__).parents[2] / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml"
FEW_BUCKETS = (0.01, 0.1, 0.25, 1.0, 10.0)
BY_SITE = frozenset(metric.name for metric in POOL_METRICS if metric.labels == ("site",))
RARE = frozenset(f"sqlalchemy_pool_{key}" for key in ("ping_seconds", "connect_seconds"))
# What is chosen on each dashboard; the others have All.
CHOICES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("overview", "all", {}),
    ("pool", "one pool of one job", {"job": "shop-1", "pool": "pool 1"}),
    ("pool", "one pool of all jobs", {"pool": "pool 1"}),
    ("database", "all", {}),
    ("fleet", "all", {}),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print the tables; return 1 if the median of a panel's times is over ``--limit`` seconds."""
    options = _options(arguments)
    print("\n".join(f"{name}: {value}" for name, value in environment()), flush=True)
    print(_sizes().terminal(), flush=True)
    if options.targets == 0:
        return 0
    shape = _shape(options)
    with (
        tempfile.TemporaryDirectory() as name,
        Targets(shape, replace(shape, database=True)) as targets,
    ):
        directory = Path(name)
        targets.write(directory / "targets.json", options.targets)
        config = _config(directory / "targets.json", options.interval, options.evaluation)
        with Prometheus(config, directory / "prometheus", "--storage.tsdb.retention.time=1d") as prometheus:
            slow = _measure(prometheus, options)
    return 1 if slow else 0


def _measure(prometheus: Prometheus, options: argparse.Namespace) -> bool:
    """Wait until all targets are scraped for long enough, then print what it takes; return whether a panel is slow."""

    def recorded() -> float:
        return sum(one.value for one in prometheus.query("sum(fleet:sqlalchemy_pool_targets:count)"))

    # Dashboards read what the rules record only of a time range that has it from its beginning.
    if not eventually(lambda: recorded() == options.targets, seconds=600, poll_seconds=1):
        print(f"{recorded():.0f} of {options.targets} targets are seen and recorded", flush=True)
    began = time.time()
    time.sleep(options.minutes * 60)
    window = panels.Window(began, time.time(), options.interval)
    print(_footprint(prometheus, options, window).terminal(), flush=True)
    timings = _timings(prometheus, window)
    print(_slowest(timings, options.limit).terminal(), flush=True)
    return any(one.seconds > options.limit for _, of_board in timings for one in of_board)


def _timings(prometheus: Prometheus, window: panels.Window) -> list[tuple[str, list[panels.Timed]]]:
    boards = [panels.chosen_panels(prometheus, board, window, chosen) for board, _, chosen in CHOICES]
    names = [f"{board}, {what}" for board, what, _ in CHOICES]
    return list(zip(names, panels.timed(prometheus, boards, window), strict=True))


def _footprint(prometheus: Prometheus, options: argparse.Namespace, window: panels.Window) -> Table:
    status = Path(f"/proc/{prometheus.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1e3
    most = int(status.split("VmHWM:")[1].split()[0]) / 1e3
    (scraped,) = prometheus.query("sum(scrape_samples_scraped)")
    (recorded,) = prometheus.query('count({__name__=~".+:.+"})')
    (slowest,) = prometheus.query("max(scrape_duration_seconds)")
    missed = sum(one.value for one in prometheus.query("sum(1 - avg_over_time(up[1h]))"))
    took = _rules_milliseconds(prometheus)
    return Table(
        title="What the fleet takes",
        note="",
        columns=("", ""),
        rows=(
            ("targets", f"{options.targets:,}"),
            (
                f"minutes of samples, one each {options.interval:g} s",
                f"{(window.end - window.start) / 60:.1f}",
            ),
            ("series scraped", f"{scraped.value:,.0f}"),
            ("series recorded", f"{recorded.value:,.0f}"),
            ("series in all", f"{prometheus.head_series():,}"),
            ("Prometheus' memory, MB", f"{resident:,.0f}"),
            ("the most it was, MB", f"{most:,.0f}"),
            ("slowest scrape, ms", f"{slowest.value * 1e3:,.0f}"),
            ("targets missed, on average", f"{missed:,.1f}"),
            (f"rules, one evaluation each {options.evaluation:g} s, ms", f"{sum(took.values()):,.0f}"),
            *((f"... of {name}, ms", f"{each:,.0f}") for name, each in took.items()),
        ),
    )


def _rules_milliseconds(prometheus: Prometheus) -> dict[str, float]:
    """Return how long the last evaluation of each group of rules took, the longest first."""
    took = {group["name"]: group["evaluationTime"] * 1e3 for group in prometheus.rule_groups()}
    return dict(sorted(took.items(), key=lambda each: each[1], reverse=True))


def _slowest(timings: list[tuple[str, list[panels.Timed]]], limit: float) -> Table:
    rows = []
    for what, of_board in timings:
        by_time = sorted(of_board, key=lambda one: one.seconds, reverse=True)
        over = sum(each.seconds > limit for each in of_board)
        for at, one in enumerate(by_time[: max(over, 3)]):
            first = (what, f"{len(of_board)}", f"{over}") if at == 0 else ("", "", "")
            spread = (f"{seconds * 1e3:,.0f}" for seconds in (one.seconds, max(one.rounds)))
            rows.append((*first, one.title, *spread, f"{one.samples:,}"))
    return Table(
        title="The slowest panels of each dashboard",
        note=f"The median of {panels.ROUNDS} rounds, and the slowest.",
        columns=("dashboard", "panels", f"over {limit:g} s", "panel", "ms", "slowest", "samples read"),
        rows=tuple(rows),
    )


def sizes() -> list[tuple[str, int]]:
    """Return the series of one target as it comes, and with each option of the sidecar that makes them fewer."""
    shape = Shape()
    shapes = {
        "as it comes": shape,
        "metrics.worker_label: false": replace(shape, worker_label=False),
        f"metrics.buckets: {len(FEW_BUCKETS)} of {len(BUCKETS)}": replace(shape, buckets=FEW_BUCKETS),
        "metrics.drop: those by site": replace(shape, drop=BY_SITE),
        "metrics.drop: ping_seconds, connect_seconds": replace(shape, drop=RARE),
        "all of these": replace(shape, worker_label=False, buckets=FEW_BUCKETS, drop=BY_SITE | RARE),
    }
    return [(name, Exposition(one).series) for name, one in shapes.items()]


def _sizes() -> Table:
    found = sizes()
    most = found[0][1]
    return Table(
        title="Series of one target: 4 pools, 4 workers, 5 sites",
        note="",
        columns=("option", "series", "of all"),
        rows=tuple((name, f"{series:,}", f"{series / most:.0%}") for name, series in found),
    )


def _shape(options: argparse.Namespace) -> Shape:
    shape = Shape(workers=options.workers, sites=options.sites)
    if options.small:
        shape = replace(shape, worker_label=False, buckets=FEW_BUCKETS, drop=BY_SITE | RARE)
    return shape


def _config(targets: Path, interval: float, evaluation: float) -> str:
    every = f"{interval:g}s"
    return json.dumps(
        {
            "global": {
                "scrape_interval": every,
                "scrape_timeout": every,
                "evaluation_interval": f"{evaluation:g}s",
            },
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "fleet", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--targets", type=int, default=1000, help="0: only the series of one target")
    parser.add_argument("--workers", type=int, default=4, help="of each target")
    parser.add_argument("--sites", type=int, default=5, help="of each pool")
    parser.add_argument("--interval", type=float, default=15, help="seconds between two scrapes")
    parser.add_argument(
        "--evaluation", type=float, default=60, help="seconds between two evaluations of the rules"
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long to scrape before it measures")
    parser.add_argument("--limit", type=float, default=1, help="seconds that a panel may take")
    parser.add_argument(
        "--small", action="store_true", help="with all options that lower the number of series"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
