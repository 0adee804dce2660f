# SPDX-License-Identifier: Apache-2.0
"""Measure what more names cost: tenants whose engines come and go, and pools that live at the same time."""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import exposition, instrument
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.segment.directory import Reader

from . import fake
from .report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SCRAPES = 5


class Cost(NamedTuple):
    """What a number of names costs."""

    instrument: float  # microseconds, the median
    scrape: float  # milliseconds, in the application
    sidecar: float  # milliseconds, at the sidecar
    memory: int  # bytes that tracemalloc counts in both
    file: int  # bytes on the disk
    series: int  # at the sidecar


def run(*, quick: bool) -> Iterator[Table]:
    """Yield two tables: tenants one after the other, and pools at the same time."""
    turn = (1, 10, 100) if quick else (1, 100, 1_000, 10_000)
    live = (1, 10) if quick else (1, 100, 1_000)
    for title, note, counts, is_live in (
        (
            "Names that come and go",
            (
                "So many engines, one after the other, each with a name of its own, a checkout and no `dispose()`: "
                "what is left after the last one. Names without a live pool stay for a while, but at most 64 of them, "
                "so the cost does not grow beyond that."
            ),
            turn,
            False,
        ),
        ("Pools at the same time", "So many engines that live, each with a name of its own.", live, True),
    ):
        costs = [(count, measured(count, is_live=is_live)) for count in counts]
        yield Table(
            title=title,
            note=f"{note} Processor time; a scrape includes writing the text. In brackets: divided by the first row.",
            columns=(
                "names",
                "µs of instrument()",
                "ms of a scrape",
                "ms at the sidecar",
                "kB of memory",
                "kB of file",
                "series",
            ),
            rows=tuple(_row(count, cost, costs[0][1]) for count, cost in costs),
        )


def _row(count: int, cost: Cost, first: Cost) -> tuple[str, ...]:
    shown = cost._replace(memory=cost.memory // 1000, file=cost.file // 1000)
    ratios = [one / (other or 1) for one, other in zip(cost, first, strict=True)]
    return (
        f"{count:,}",
        *(f"{value:,.1f} ({ratio:.1f})" for value, ratio in zip(shown[:3], ratios[:3], strict=True)),
        *(f"{value:,} ({ratio:.1f})" for value, ratio in zip(shown[3:], ratios[3:], strict=True)),
    )


def measured(count: int, *, is_live: bool) -> Cost:
    """Measure what ``count`` names cost: of pools that live, or that come and go."""
    cost = _measured(count, is_live=is_live)
    tracemalloc.start()  # in a run of its own, because it slows everything down
    try:
        return cost._replace(memory=_measured(count, is_live=is_live).memory)
    finally:
        tracemalloc.stop()


def _measured(count: int, *, is_live: bool) -> Cost:
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, directory)
        registry, reader = CollectorRegistry(), Reader(directory)
        sidecar = FleetCollector(reader, worker_label=True, counters_per_worker=False)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        times, kept = [], []
        for number in range(count):
            engine = fake.engine()
            began = time.process_time_ns()
            handle = instrument(engine, name=f"tenant {number:06d}", registry=registry, directory=directory)
            times.append(time.process_time_ns() - began)
            engine.connect().close()
            if is_live:
                kept.append(engine)
                stack.callback(handle.close)
            del engine, handle
            if not is_live and number % 50 == 49:
                gc.collect()
                _text(sidecar)
        gc.collect()
        _text(registry)
        series = sum(1 for line in _text(sidecar).splitlines() if not line.startswith(b"#"))
        memory = tracemalloc.get_traced_memory()[0] - before
        (file,) = directory.iterdir()
        return Cost(
            statistics.median(times) / 1e3,
            _milliseconds(lambda: _text(registry)),
            _milliseconds(lambda: _text(sidecar)),
            memory,
            file.stat().st_blocks * 512,
            series,
        )


def _text(collector: Any) -> bytes:
    return exposition.text(collector.collect())


def _milliseconds(act: Callable[[], object]) -> float:
    times = []
    for _ in range(_SCRAPES):
        began = time.process_time_ns()
        act()
        times.append(time.process_time_ns() - began)
    return statistics.median(times) / 1e6
