# SPDX-License-Identifier: Apache-2.0
"""Measure a scrape of many workers against prometheus_client's multiprocess mode with the same families."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import BUCKETS, POOL_METRICS
from sqlalchemy_pool_exporter.segment import block as segment
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.identity import Identity, written

from . import measure
from .report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy_pool_exporter.segment.directory import Fleet

POOLS = 4
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
INFO = {"pool_class": "QueuePool", "dialect": "postgresql", "driver": "psycopg"}
# (live workers, dead workers)
FLEETS = ((1, 0), (16, 0), (64, 0), (256, 0), (256, 256))
_HELD = 5  # connections of each pool
_SUMS = [
    at + segment.SUM
    for at in (
        segment.WAIT,
        segment.WAIT_FAILED,
        segment.CONNECT,
        segment.CONNECT_FAILED,
        segment.PING,
        segment.HOLD,
    )
]


def run(*, quick: bool) -> Iterator[Table]:
    """Yield one table, a row for each number of workers."""
    fleets = ((1, 0), (4, 4)) if quick else FLEETS
    rows = [
        _row(live, dead, _measured(live, dead, rounds=2 if quick else max(8, 1200 // (live + dead) or 1)))
        for live, dead in fleets
    ]
    yield Table(
        title="A scrape of many workers",
        note=(
            f"Milliseconds of the processor, medians; {POOLS} pools in each worker, the same families on both sides, "
            "in Prometheus' text format, uncompressed. Reading the files, making families of them and writing the text "
            "are what this project's figure consists of. Between two scrapes every pool of every live worker counts "
            "on and hands each of its connections out anew, so that none is as it was; prometheus_client's files stay "
            "as they were written, which is no harder for it. Of workers that died it keeps counters and histograms "
            "for ever, as mark_process_dead() leaves them; here a dead worker costs one look at its file, and nothing "
            "once another has taken its file over. Times: prometheus_client's time divided by ours, turn by turn, "
            "with the 95 % "
            "confidence interval of the median. Series: the lines that are no comments, ours and theirs."
        ),
        columns=(
            "workers",
            "dead",
            "ours",
            "reading",
            "families",
            "text",
            "multiprocess mode",
            "times",
            "MB",
            "MB theirs",
            "series",
        ),
        rows=tuple(rows),
        names=2,
    )


class _Turn(NamedTuple):
    """Nanoseconds of one scrape and of its parts."""

    reading: int
    families: int
    text: int

    @property
    def total(self) -> int:
        return sum(self)


class _TimedReader(Reader):
    """A reader that records the processor time of its last read."""

    spent = 0

    def read(self, **options: Any) -> Fleet:
        began = time.process_time_ns()
        fleet = super().read(**options)
        self.spent = time.process_time_ns() - began
        return fleet


class _Measured(NamedTuple):
    turns: list[tuple[_Turn, int]]
    disks: tuple[int, int]
    series: tuple[int, int]


def _row(live: int, dead: int, measured: _Measured) -> tuple[str, ...]:
    ours, theirs = zip(*measured.turns, strict=True)
    ratio = measure.confidence([their / our.total for our, their in measured.turns])
    parts: list[Sequence[int]] = [[turn.total for turn in ours], *zip(*ours, strict=True), theirs]
    return (
        f"{live}",
        f"{dead}",
        *(f"{statistics.median(part) / 1e6:.1f}" for part in parts),
        f"{ratio:.1f}",
        *(f"{disk / 1e6:.1f}" for disk in measured.disks),
        "{:,}, {:,}".format(*measured.series),
    )


def _measured(live: int, dead: int, *, rounds: int) -> _Measured:
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - only needed here

    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, root)
        mine, other = root / "ours", root / "theirs"
        mine.mkdir()
        other.mkdir()
        count_on = write_segments(mine, live=live, dead=dead, stack=stack)
        _write_theirs(other, live=live, dead=dead)
        reader = _TimedReader(mine)
        collector = FleetCollector(reader, worker_label=True, counters_per_worker=False)
        registry = CollectorRegistry()
        multiprocess: Any = MultiProcessCollector
        multiprocess(registry, str(other))

        def ours() -> _Turn:
            count_on()
            began = time.process_time_ns()
            families = list(collector.collect())
            collected = time.process_time_ns()
            exposition.text(families)
            ended = time.process_time_ns()
            return _Turn(reader.spent, collected - began - reader.spent, ended - collected)

        def theirs() -> int:
            began = time.process_time_ns()
            generate_latest(registry)
            return time.process_time_ns() - began

        ours(), theirs()  # warm up: run what happens once in a process
        both: tuple[Callable[[], Any], Callable[[], Any]] = (ours, theirs)
        (turns,) = measure.paired(rounds, [both])
        texts = exposition.text(collector.collect()), generate_latest(registry)
        return _Measured(turns, (_disk(mine), _disk(other)), (_series(texts[0]), _series(texts[1])))


def _series(text: bytes) -> int:
    return sum(1 for line in text.splitlines() if not line.startswith(b"#"))


def _disk(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def write_segments(directory: Path, *, live: int, dead: int, stack: ExitStack) -> Callable[[], None]:
    """Make a file for each worker, and return a function that increments the live workers' counters.

    A lock belongs to an open file, so one process can hold the locks of many workers.
    """
    leases = [Lease(directory) for _ in range(live + dead)]
    blocks = [[_block(lease, f"pool {pool}") for pool in range(POOLS)] for lease in leases]
    for lease in leases[live:]:
        lease.close()
    for lease in leases[:live]:
        stack.callback(lease.close)
    living = [block for of_one in blocks[:live] for block in of_one]

    def count_on() -> None:
        for block in living:
            for field in (segment.WAIT + 3, segment.HOLD + 5):
                block[field] += 1.0
            for field in _SUMS:
                block[field] += 0.00123
            now = time.monotonic()
            block[segment.LAST_CHECKIN] = now
            for row in range(_HELD):
                block[segment.CONNECTIONS_AT + segment.ROW * row + segment.HELD_SINCE] = now

    return count_on


def _block(lease: Lease, name: str) -> memoryview[float]:
    """Return the block of a pool under load: a third of its connections are in use, and every counter has grown."""
    block = lease.block(written(Identity(name), INFO, has_overflow=True)).doubles
    block[segment.ACTIVE] = block[segment.HAS_OVERFLOW] = 1.0
    block[segment.SIZE], block[segment.MAX_OVERFLOW] = 5.0, 10.0
    block[segment.TIMEOUT], block[segment.RECYCLE], block[segment.PRE_PING] = 30.0, 1800.0, 1.0
    block[segment.WAITERS_USED] = block[segment.CONNECTIONS_USED] = 15.0
    for field in range(segment.FIRST_COUNTER, segment.FIELDS):
        block[field] = 12345.0
    for field in range(segment.OTHER_SITES, segment.OTHER_SITES + segment.SITE_COUNTS):
        block[field] = 0.0  # as for _write_one()
    for field in _SUMS:
        block[field] = 1234.56789
    for row in range(15):
        at, now = segment.CONNECTIONS_AT + segment.ROW * row, time.monotonic()
        block[at], block[at + segment.HELD_SINCE] = now, now if row < _HELD else 0.0
    return block


def _write_theirs(directory: Path, *, live: int, dead: int) -> None:
    """Fork a process for each worker, which writes its files and exits; mark the dead workers as dead."""
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
    values.ValueClass = values.get_value_class()  # chosen at import, before the variable was set
    registry = CollectorRegistry()
    for metric in POOL_METRICS:
        # What depends on the application, such as its sites, the files of ours do not have either.
        if metric.kind == "info" or (metric.labels and not metric.values) or metric.key == "leak_suspects":
            continue
        labels = ("pool", *metric.labels)
        family: Any
        if metric.kind == "counter":
            family = Counter(metric.name, metric.help, labels, registry=registry)
        elif metric.kind == "histogram":
            family = Histogram(metric.name, metric.help, labels, buckets=BUCKETS, registry=registry)
        else:
            # Capacity is summed, as this project does. Every other gauge has one series per worker, on both sides.
            mode: Any = "livesum" if metric.key == "capacity" else "liveall"
            family = Gauge(metric.name, metric.help, labels, multiprocess_mode=mode, registry=registry)
        for pool in range(POOLS):
            for label in metric.values or (None,):
                child = family.labels(f"pool {pool}", *([] if label is None else [label]))
                (child.observe if metric.kind == "histogram" else child.inc)(1.5)
