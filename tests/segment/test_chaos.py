# SPDX-License-Identifier: Apache-2.0
"""The metrics stay correct while workers and sidecars are killed again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.chaos_worker import THREADS, Tally
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.wait import eventually
from tests.support.workers import DIRECTORY

if TYPE_CHECKING:
    from tests.support.pg import Server
    from tests.support.samples import Samples

WORKERS = 8
SECONDS = 35.0
RESTART_SECONDS = 8.0
PREFIX = "sqlalchemy_pool_"
CUMULATIVE = ("_total", "_bucket", "_count", "_sum")


class Crew:
    """Workers under load; each killed worker is replaced at once."""

    def __init__(self, directory: Path, tallies: Path, url: str) -> None:
        self._directory, self._tallies, self._url = directory, tallies, url
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.kills = 0
        for place in range(WORKERS):
            self._start(place)

    def _start(self, place: int) -> None:
        self._processes[place] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.chaos_worker",
                self._url,
                self._tallies / f"{place}-{self.kills}",
            ],
            cwd=ROOT,
            env={**os.environ, DIRECTORY: str(self._directory)},
            stdin=subprocess.PIPE,
        )

    def replace(self, place: int) -> None:
        """Kill a worker and start another in its place."""
        self._kill(place)
        self.kills += 1
        self._start(place)

    def end(self) -> None:
        """Kill all workers."""
        for place in list(self._processes):
            self._kill(place)

    def _kill(self, place: int) -> None:
        process = self._processes.pop(place)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def tallies(self) -> list[Tally]:
        """Return the tally of every worker so far, killed ones included."""
        return [Tally.read(path) for path in self._tallies.iterdir() if path.stat().st_size]


class Mortal:
    """A sidecar that is killed and started again every few seconds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.sidecar = Sidecar("--directory", directory)
        self._since = time.monotonic()
        self.restarts = 0

    def restart_if_old(self) -> None:
        if time.monotonic() - self._since > RESTART_SECONDS:
            self.end()
            self.sidecar = Sidecar("--directory", self._directory)
            self._since = time.monotonic()
            self.restarts += 1

    def end(self) -> None:
        self.sidecar.end(signal.SIGKILL)


class Watch:
    """Scrapes, and compares each scrape with the one before, even if a restarted sidecar answers."""

    def __init__(self) -> None:
        self._last: Samples = {}
        self.scrapes = 0

    def look(self, sidecar: Sidecar) -> Samples:
        """Scrape; assert that no counter has decreased or disappeared, and that no file is in error."""
        samples = sidecar.samples()
        now = {key: value for key, value in samples.items() if key[0].endswith(CUMULATIVE)}
        less = {key: (value, now.get(key)) for key, value in self._last.items() if now.get(key, -1.0) < value}
        assert less == {}, f"counters went backwards at scrape {self.scrapes}"
        errors = {key: value for key, value in samples.items() if key[0].endswith("segment_errors") and value}
        assert errors == {}
        self._last = now
        self.scrapes += 1
        return samples


class Body:
    """The file descriptors and the memory of a process."""

    def __init__(self, pid: int) -> None:
        self._of = Path("/proc") / str(pid)

    def descriptors(self) -> int:
        return sum(1 for _ in (self._of / "fd").iterdir())

    def resident_kib(self) -> int:
        (line,) = (
            line for line in (self._of / "status").read_text().splitlines() if line.startswith("VmRSS:")
        )
        return int(line.split()[1])


def value(samples: Samples, key: str) -> float:
    return samples[(PREFIX + key, frozenset({("pool", "chaos")}))]


@pytest.mark.soak
def test_kill_everything(tmp_path: Path, server: Server, application_name: str) -> None:
    """No counter decreases, and the final sums equal the workers' tallies, give or take calls in flight at a kill."""
    directory, tallies = tmp_path / "segments", tmp_path / "tallies"
    directory.mkdir()
    tallies.mkdir()
    dice = random.Random(7)  # noqa: S311 - the same kills in each run
    watch, steady_watch = Watch(), Watch()
    with ExitStack() as stack:
        crew = Crew(directory, tallies, server.url("postgresql+psycopg", application_name=application_name))
        stack.callback(crew.end)
        steady = stack.enter_context(Sidecar("--directory", directory))
        mortal = Mortal(directory)
        stack.callback(mortal.end)
        began = time.monotonic()
        body, before = Body(steady.pid), (0, 0)
        while time.monotonic() - began < SECONDS or crew.kills < 4 * WORKERS:
            # Each round kills every worker once, in random order and at random times.
            for place in dice.sample(range(WORKERS), WORKERS):
                time.sleep(dice.uniform(0.2, 1.0))
                crew.replace(place)
                watch.look(mortal.sidecar)
                steady_watch.look(steady)
                assert len(list(directory.iterdir())) <= WORKERS
                mortal.restart_if_old()
            before = before if before[0] else (body.descriptors(), body.resident_kib())
        crew.end()
        samples = watch.look(mortal.sidecar)
        checkouts, checkins = value(samples, "checkouts_total"), value(samples, "checkins_total")
        assert value(steady_watch.look(steady), "checkouts_total") == checkouts
        for _ in range(300):
            steady_watch.look(steady)
        # The sidecar closes the descriptor of a finished connection a moment later.
        assert eventually(lambda: body.descriptors() <= before[0])
        after = body.descriptors(), body.resident_kib()
    files = [path.name for path in directory.iterdir()]
    counted = crew.tallies()
    asked, out, closing, back = (sum(column) for column in zip(*counted, strict=True))
    sys.stdout.write(
        f"\n{crew.kills} workers killed and {mortal.restarts} sidecars, {watch.scrapes + steady_watch.scrapes} "
        f"scrapes, {len(files)} files; checkouts: {checkouts:.0f}, tallied {out} and {asked - out} in flight; "
        f"returns: {checkins:.0f}, tallied {back} and {closing - back} in flight; "
        f"descriptors and KiB of the sidecar that stayed: {before} and then {after}\n"
    )
    # In each kill a store to the one was made and that to the other was not.
    by_site = sum(count for (name, _), count in samples.items() if name == f"{PREFIX}checkouts_by_site_total")
    assert checkouts <= by_site <= checkouts + THREADS * len(counted)
    assert out <= checkouts <= asked <= out + THREADS * len(counted)
    assert back <= checkins <= closing <= back + THREADS * len(counted)
    assert len(files) == WORKERS
    assert after[1] <= before[1] + 2048
    assert mortal.restarts >= 3
