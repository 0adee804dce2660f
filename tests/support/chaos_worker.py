# SPDX-License-Identifier: Apache-2.0
"""A worker under load that keeps an account of its own, independent of the exporter and of its own death.

Before and after each step a thread adds one to its number in a file that is mapped into memory. So when the process is
killed, what the pool was asked for and what it did differ by at most one call in each thread.
"""

from __future__ import annotations

import mmap
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument

THREADS = 4
_COLUMNS = 4


class Tally(NamedTuple):
    """How often a worker's threads were at each step of a checkout and its return."""

    asked: int
    out: int
    closing: int
    back: int

    @classmethod
    def read(cls, path: Path) -> Tally:
        """Add up what the threads of a worker noted, whether it lives or not."""
        numbers = memoryview(path.read_bytes()).cast("q").tolist()
        return cls(*(sum(numbers[column::_COLUMNS]) for column in range(_COLUMNS)))


def main(url: str, tally: Path) -> None:
    """Check out and return until killed."""
    with tally.open("wb+") as file:
        file.truncate(8 * _COLUMNS * THREADS)
        numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
    # Fewer than threads, so that some wait.
    engine = create_engine(url, pool_size=2, max_overflow=1)
    instrument(engine, name="chaos")

    def work(thread: int) -> None:
        asked, out, closing, back = range(_COLUMNS * thread, _COLUMNS * (thread + 1))
        while True:
            numbers[asked] += 1
            connection = engine.connect()
            numbers[out] += 1
            connection.execute(text("SELECT 1"))
            numbers[closing] += 1
            connection.close()
            numbers[back] += 1
            time.sleep(0.01 * (thread + 1))

    for thread in range(THREADS):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
