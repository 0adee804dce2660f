# SPDX-License-Identifier: Apache-2.0
"""Compare the waits that ``advise`` predicts with those of real pools under a known load, on a real PostgreSQL.

Callers arrive at random (a Poisson process), whether earlier ones have been served or not, and each holds a connection
while the server sleeps. One run, in a pool that is large enough, is what ``advise`` observes. From it alone the waits
in pools of other sizes are predicted; each of those is then run with the same load and measured. A second prediction is
made from the small pool's own run: what ``advise`` says of the size that a pool has. The pools of one load run at
the same time, each in a process of its own.

The table goes into ``docs/sizing.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.advise.advice import Objective, advise
from sqlalchemy_pool_exporter.advise.observation import Observation, observations
from sqlalchemy_pool_exporter.advise.replay import Pool, Traffic, replay, traffic
from sqlalchemy_pool_exporter.advise.table import Table, growth, table_of

from . import report
from .need import need
from .report import Table as Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).resolve().parent.parent
_START, _END = "<!-- validation:start -->", "<!-- validation:end -->"
_SHARE = 0.99
_SLEEP = text("SELECT pg_sleep(:seconds)")
_WARM_UP_SECONDS = 3.0
_MOST_THREADS = 200
_NEVER = 600.0  # seconds: no caller gives up


class Load(NamedTuple):
    """A load: how many callers come a second, and for how long the server sleeps for each."""

    name: str
    rate: float
    sleep: Callable[[random.Random], float]
    sizes: tuple[int, ...]  # the last one is the one that is observed


# Sleeps are 20 to 30 ms on average, so that pools of a few connections are busy at a rate that costs little processor.
_LOADS: tuple[Load, ...] = (
    Load("exponential", 60.0, lambda chance: chance.expovariate(1 / 0.025), (2, 3, 4, 5, 10)),
    Load("constant", 60.0, lambda _: 0.025, (2, 3, 4, 10)),
    Load(
        "one in twenty takes 300 ms",
        40.0,
        lambda chance: 0.3 if chance.random() < 0.05 else 0.012,
        (2, 3, 4, 5, 10),
    ),
)
_DRIVERS: tuple[str, ...] = ("psycopg", "asyncpg")


class Caller(NamedTuple):
    """When a caller comes, for how long it is served, and whether it counts."""

    at: float
    sleep: float
    counts: bool


class Run(NamedTuple):
    """What one pool did."""

    waits: list[float]  # of each caller, in seconds, in order of length
    observed: Observation

    @property
    def measured(self) -> float:
        """The quantile of the waits."""
        return self.waits[int(_SHARE * len(self.waits))]


def main(arguments: list[str] | None = None) -> int:
    """Run all loads on all pools; print the table, and write it if everything was run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on each pool (60)")
    parser.add_argument("--quick", action="store_true", help="one load for a few seconds: does it run")
    parser.add_argument(
        "--output", type=Path, help="the page whose table to replace (default: docs/sizing.md)"
    )
    options = parser.parse_args(arguments)
    loads, drivers, seconds = _LOADS, _DRIVERS, options.seconds
    if options.quick:
        loads, drivers, seconds = (_LOADS[0]._replace(sizes=(3, 10)),), _DRIVERS[:1], 4.0
    tables = list(_tables(loads, drivers, seconds))
    for table in tables:
        print(f"\n{table.terminal()}\n{table.note}")
    output = options.output or (None if options.quick else _ROOT / "docs" / "sizing.md")
    if output is not None and _replace(output, tables, seconds):
        print(f"\nupdated {output}")
    return 0


def _tables(loads: tuple[Load, ...], drivers: tuple[str, ...], seconds: float) -> Iterator[Rows]:
    rows, sizes, errors = [], [], []
    # The tests' server. Its module imports psycopg, which may be missing, so import it here.
    with need("tests.support.pg", "psycopg").running() as server:
        for driver in drivers:
            for load in loads:
                print(f"{driver}, {load.name} ...", file=sys.stderr, flush=True)
                url = server.url(f"postgresql+{driver}", application_name="sizing")
                callers = list(_schedule(driver, load, seconds))
                runs = _runs(driver, url, load, callers)
                seen = runs[load.sizes[-1]].observed
                for size, run in list(runs.items())[:-1]:
                    ahead, own = _predicted(seen, size), _predicted(run.observed, size)
                    errors.append((_error(ahead, run.measured), abs(ahead - run.measured)))
                    rows.append(
                        (driver, load.name, str(size), *_cells(run, ahead, _same(callers, run, size), own))
                    )
                sizes.append((driver, load.name, *_advised(seen, runs)))
    yield Rows(
        title="Predicted and measured waits",
        note=_note(errors, seconds),
        columns=(
            "driver",
            "hold times",
            "pool_size",
            "in use",
            "measured 99 %",
            "predicted from a pool of 10",
            "error",
            "predicted from its own run",
            "the same callers replayed",
        ),
        rows=tuple(rows),
        names=2,
    )
    yield Rows(
        title="The size advised",
        note="The smallest size at which 99 % wait at most 50 ms, as advised from the pool of 10 and as measured.",
        columns=("driver", "hold times", "advised", "smallest measured"),
        rows=tuple(sizes),
        names=2,
    )


def _note(errors: list[tuple[float, float]], seconds: float) -> str:
    relative = sorted(abs(one) for one, _ in errors)
    return (
        f"Each pool was under load for {seconds:g} s. Of the {len(errors)} predictions from the pool of 10, half are "
        f"within {statistics.median(relative):.0%} of the measured wait, and all within {relative[-1]:.0%}; the median "
        f"of the differences is {1000 * statistics.median(one for _, one in errors):.1f} ms, the largest "
        f"{1000 * max(one for _, one in errors):.0f} ms."
    )


def _cells(run: Run, ahead: float, same: float, own: float) -> tuple[str, ...]:
    use = run.observed.utilisation or 0.0
    error = f"{_error(ahead, run.measured):+.0%}"
    return f"{use:.0%}", _ms(run.measured), _ms(ahead), error, _ms(own), _ms(same)


def _error(predicted: float, measured: float) -> float:
    return predicted / measured - 1.0


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _advised(seen: Observation, runs: dict[int, Run]) -> tuple[str, str]:
    objective = Objective()
    advised = advise(seen, objective, None).pool_size
    enough = [size for size, run in runs.items() if run.measured <= objective.wait_seconds]
    return str(advised), str(min(enough))


def _same(callers: list[Caller], run: Run, size: int) -> float:
    """Return what the replay makes of the very callers, each of whom holds a connection a little longer than asleep."""
    counted = [caller.sleep for caller in callers if caller.counts]
    more = max(0.0, run.observed.holds.mean - statistics.fmean(counted))
    known = Traffic(
        [one.at for one in callers], [one.sleep + more for one in callers], len(callers) - len(counted)
    )
    return replay(known, Pool(size)).quantile(_SHARE)


def _predicted(seen: Observation, size: int) -> float:
    callers = traffic(seen.rate_of_one, seen.holds)
    return replay(callers, Pool(size, timeout_seconds=_NEVER)).quantile(_SHARE)


# -- real pools


class _Watch:
    """Reads the pool at the start and at the end of what counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tables: list[Table] = []
        self._times: list[float] = []

    @property
    def has_begun(self) -> bool:
        return bool(self._tables)

    def look(self) -> None:
        self._tables.append(table_of(self.registry.collect()))
        self._times.append(time.perf_counter())

    def observed(self) -> Observation:
        (before, after), (began, ended) = self._tables, self._times
        (one,) = observations(growth(before, after, "here"), after, seconds=ended - began, at=0.0)
        return one


def _runs(driver: str, url: str, load: Load, callers: list[Caller]) -> dict[int, Run]:
    """Run the pools of all sizes at the same time."""
    with ProcessPoolExecutor(len(load.sizes), mp_context=get_context("spawn")) as processes:
        runs = {size: processes.submit(_run, driver, url, size, callers) for size in load.sizes}
        return {size: run.result() for size, run in runs.items()}


def _run(driver: str, url: str, size: int, callers: list[Caller]) -> Run:
    watch = _Watch()
    waits = (
        _in_threads(url, size, callers, watch)
        if driver == "psycopg"
        else asyncio.run(_in_tasks(url, size, callers, watch))
    )
    return Run(sorted(waits), watch.observed())


def _schedule(driver: str, load: Load, seconds: float) -> Iterator[Caller]:
    """Yield the callers of a load."""
    chance = random.Random(f"{driver} {load.name}")  # noqa: S311 - the same load for each size
    now = 0.0
    while now < _WARM_UP_SECONDS + seconds:
        now += chance.expovariate(load.rate)
        yield Caller(now, load.sleep(chance), now >= _WARM_UP_SECONDS)


def _in_threads(url: str, size: int, callers: list[Caller], watch: _Watch) -> list[float]:
    engine = create_engine(url, pool_size=size, max_overflow=0, pool_timeout=_NEVER)
    waits: list[float] = []

    def call(caller: Caller) -> None:
        asked = time.perf_counter()
        with engine.connect() as connection:
            if caller.counts:
                waits.append(time.perf_counter() - asked)
            connection.execute(_SLEEP, {"seconds": caller.sleep})

    with (
        instrument(engine, name="sizing", registry=watch.registry),
        ThreadPoolExecutor(_MOST_THREADS) as threads,
    ):
        for connection in [engine.connect() for _ in range(size)]:  # so that no caller has to open one
            connection.close()
        all_run = threading.Barrier(_MOST_THREADS)
        list(threads.map(lambda _: all_run.wait(), range(_MOST_THREADS)))
        began = time.perf_counter()
        for caller in callers:
            if caller.counts and not watch.has_begun:
                watch.look()
            time.sleep(max(0.0, began + caller.at - time.perf_counter()))
            threads.submit(call, caller)
        watch.look()
    engine.dispose()
    return waits


async def _in_tasks(url: str, size: int, callers: list[Caller], watch: _Watch) -> list[float]:
    engine = create_async_engine(url, pool_size=size, max_overflow=0, pool_timeout=_NEVER)
    waits: list[float] = []

    async def call(caller: Caller) -> None:
        asked = time.perf_counter()
        async with engine.connect() as connection:
            if caller.counts:
                waits.append(time.perf_counter() - asked)
            await connection.execute(_SLEEP, {"seconds": caller.sleep})

    with instrument(engine, name="sizing", registry=watch.registry):
        for connection in [await engine.connect() for _ in range(size)]:  # as above
            await connection.close()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for caller in callers:
                if caller.counts and not watch.has_begun:
                    watch.look()
                await asyncio.sleep(max(0.0, began + caller.at - time.perf_counter()))
                tasks.create_task(call(caller))
            watch.look()
        await engine.dispose()
    return waits


# -- the page


def _replace(path: Path, tables: list[Rows], seconds: float) -> bool:
    """Put the tables between the two markers of a page; return whether it has them."""
    before, start, rest = path.read_text("utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not end:
        return False
    facts = dict(report.environment())
    where = (
        f"Measured by `python -m benchmarks.sizing --seconds {seconds:g}` on {facts['Processor']}; {facts['Python']}, "
        f"SQLAlchemy {facts['SQLAlchemy']}, psycopg {facts['psycopg']}, asyncpg {facts['asyncpg']}; PostgreSQL on the "
        "same machine."
    )
    parts = [where, *(table.markdown() for table in tables)]
    path.write_text(f"{before}{start}\n" + "\n\n".join(parts) + f"\n{end}{after}", "utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
