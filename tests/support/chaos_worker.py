# SPDX-License-Identifier: Apache-2.0
"""A worker under load that counts its own checkouts, independently of the exporter, in a file that survives a kill.

Before and after each step a thread adds one to its number in a memory-mapped file. So when the process is killed, the
numbers of started and of finished calls differ by at most one per thread.
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
    """How often a worker's threads reached each step of a checkout and its return."""

    asked: int
    out: int
    closing: int
    back: int

    @classmethod
    def read(cls, path: Path) -> Tally:
        """Return the sum of the numbers of a worker's threads; the worker may be dead."""
        numbers = memoryview(path.read_bytes()).cast("q").tolist()
        return cls(*(sum(numbers[column::_COLUMNS]) for column in range(_COLUMNS)))


def main(url: str, tally: Path) -> None:
    """Check out and return until killed."""
    with tally.open("wb+") as file:
        file.truncate(8 * _COLUMNS * THREADS)
        numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
    # Fewer connections than threads, so that some threads wait.
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
