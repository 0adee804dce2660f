# SPDX-License-Identifier: Apache-2.0
"""What a scrape of many workers costs, beside prometheus_client's multiprocess mode with the same families.

``python -m benchmarks.scrape`` prints, for each number of workers, the median of both, measured in turn in one
process, and where our time goes: reading the files, making families of them, writing the text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values

from sqlalchemy_pool_exporter import exposition, segment
from sqlalchemy_pool_exporter.catalogue import BUCKETS, POOL_METRICS
from sqlalchemy_pool_exporter.fleet import Reader
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

POOLS = 4
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
INFO = {"pool_class": "QueuePool", "dialect": "postgresql", "driver": "psycopg"}


class Cost(NamedTuple):
    """Milliseconds of a scrape, and bytes on the disk."""

    total: float
    reading: float
    families: float
    text: float
    disk: int


def write_ours(directory: Path, *, live: int, dead: int, stack: ExitStack) -> None:
    """Make a file for each worker; the locks are an open file's, so one process can hold those of many."""
    leases = [Lease(directory) for _ in range(live + dead)]
    for lease in leases:
        for pool in range(POOLS):
            block = lease.block(f"pool {pool}", INFO, segment.rows_for(15.0))
            block[segment.ACTIVE] = block[segment.HAS_OVERFLOW] = 1.0
            block[segment.SIZE], block[segment.MAX_OVERFLOW] = 5.0, 10.0
            block[segment.TIMEOUT], block[segment.RECYCLE], block[segment.PRE_PING] = 30.0, -1.0, 1.0
            block[segment.WAITERS_USED] = block[segment.CONNECTIONS_USED] = 16.0
            for field in range(segment.FIRST_COUNTER, segment.FIELDS):
                block[field] = 12345.0
            for row in range(5):
                block[segment.CONNECTIONS_AT + segment.ROW * row] = time.monotonic()
    for lease in leases[live:]:
        lease.close()
    for lease in leases[:live]:
        stack.callback(lease.close)


def write_theirs(directory: Path, *, live: int, dead: int) -> None:
    """Fork a process for each worker, which writes its files and ends; those that are to be dead are marked so."""
    for number in range(live + dead):
        pid = os.fork()
        if pid == 0:
            os.environ[MULTIPROCESS] = str(directory)
            _write_one()
            os._exit(0)
        os.waitpid(pid, 0)
        if number >= live:
            for path in directory.glob(f"gauge_live*_{pid}.db"):  # what mark_process_dead() does
                path.unlink()


def _write_one() -> None:
    values.ValueClass = values.get_value_class()  # decided at import, when the variable was not set
    registry = CollectorRegistry()
    for metric in POOL_METRICS:
        if metric.kind == "info":
            continue
        labels = ("pool", *metric.labels)
        family: Any
        if metric.kind == "counter":
            family = Counter(metric.name, metric.help, labels, registry=registry)
        elif metric.kind == "histogram":
            family = Histogram(metric.name, metric.help, labels, buckets=BUCKETS, registry=registry)
        else:
            family = Gauge(metric.name, metric.help, labels, multiprocess_mode="liveall", registry=registry)
        for pool in range(POOLS):
            for label in metric.values or (None,):
                child = family.labels(f"pool {pool}", *([] if label is None else [label]))
                (child.observe if metric.kind == "histogram" else child.inc)(1.5)


def median_ms(work: Callable[[], object], seconds: float) -> float:
    """Return the median of as many runs as there is time for, and of five at least.

    Of the processor's time, not of the clock on the wall: neither of the two waits for anything but the processor, and
    on a busy machine the wall's clock measures the others.
    """
    taken: list[float] = []
    end = time.monotonic() + seconds
    while len(taken) < 5 or time.monotonic() < end:
        began = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken)


def ours(directory: Path, seconds: float) -> Cost:
    """Measure the sidecar's collector."""
    reader = Reader(directory)
    collector = FleetCollector(reader)
    total = median_ms(lambda: exposition.text(collector.collect()), seconds)
    reading = median_ms(reader.read, seconds / 2)
    collecting = median_ms(lambda: list(collector.collect()), seconds / 2)
    return Cost(total, reading, collecting - reading, total - collecting, disk(directory))


def theirs(directory: Path, seconds: float) -> Cost:
    """Measure prometheus_client's multiprocess mode."""
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    registry = CollectorRegistry()
    collector: Any = MultiProcessCollector(registry, str(directory))
    total = median_ms(lambda: generate_latest(registry), seconds)
    collecting = median_ms(lambda: list(collector.collect()), seconds / 2)
    return Cost(total, float("nan"), collecting, total - collecting, disk(directory))


def disk(directory: Path) -> int:
    """Return what the files take on the disk, in bytes."""
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def measure(live: int, dead: int, seconds: float) -> tuple[Cost, Cost]:
    """Measure both, in turn, with so many workers."""
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, root)
        mine, other = root / "ours", root / "theirs"
        mine.mkdir()
        other.mkdir()
        write_ours(mine, live=live, dead=dead, stack=stack)
        write_theirs(other, live=live, dead=dead)
        return ours(mine, seconds), theirs(other, seconds)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the measurements")
    parser.add_argument("--live", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--dead", type=int, default=256, help="measured once more with so many that are gone")
    options = parser.parse_args()
    print(
        f"{'workers':>12} {'ours ms':>9} {'reading':>8} {'families':>9} {'text':>7} {'MB':>6}   "
        f"{'multiprocess ms':>15} {'MB':>6} {'times':>6}"
    )
    for live, dead in [*((live, 0) for live in options.live), (max(options.live), options.dead)]:
        our, other = measure(live, dead, options.seconds)
        print(
            f"{live:>5}+{dead:<6} {our.total:>9.1f} {our.reading:>8.1f} {our.families:>9.1f} {our.text:>7.1f} "
            f"{our.disk / 1e6:>6.1f}   {other.total:>15.1f} {other.disk / 1e6:>6.1f} {other.total / our.total:>6.1f}"
        )


if __name__ == "__main__":
    main()
