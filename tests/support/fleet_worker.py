# SPDX-License-Identifier: Apache-2.0
"""An application with many pools: ``python -m tests.support.fleet_worker URL NAME,NAME,... [--stuck NAME,NAME,...]``.

Each pool has callers that take a connection for some milliseconds, a few times in a second, or more rarely if there are
many pools. A stuck one is held as a
whole, and its callers wait. It ends when standard input ends.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from sqlalchemy import Engine

CALLERS = 3  # of each pool
PAUSE = 0.5  # seconds between two checkouts of a caller, on the average, with up to FEW pools
FEW = 20
SIZE, OVERFLOW, TIMEOUT = 3, 1, 4.0


def main(url: str, names: str, *options: str) -> None:
    """Call the pools until standard input ends."""
    stuck = set(options[1].split(",")) if options[:1] == ("--stuck",) else set()
    pause = PAUSE * max(1.0, len(names.split(",")) / FEW)
    for name in names.split(","):
        engine = _engine(url, name)
        for _ in range(CALLERS):
            threading.Thread(target=_call, args=(engine, pause), daemon=True).start()
        for _ in range(SIZE + OVERFLOW if name in stuck else 0):
            threading.Thread(target=_hold, args=(engine,), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


def _engine(url: str, name: str) -> Engine:
    engine = create_engine(
        url.replace("NAME", name),
        poolclass=QueuePool,
        pool_size=SIZE,
        max_overflow=OVERFLOW,
        pool_timeout=TIMEOUT,
        connect_args={"check_same_thread": False} if url.startswith("sqlite") else {},
    )
    instrument(engine, name=name, sites=True)
    return engine


def _call(engine: Engine, pause: float) -> None:
    chance = random.Random(engine.pool.__hash__())  # noqa: S311 - not for cryptography
    while True:
        time.sleep(chance.expovariate(1 / pause))
        with contextlib.suppress(exc.TimeoutError), engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            time.sleep(chance.uniform(0.002, 0.02))


def _hold(engine: Engine) -> None:
    time.sleep(20)
    with engine.connect():
        time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
