# SPDX-License-Identifier: Apache-2.0
"""Worker processes for the tests, which read commands line by line and can be killed.

Run as a program, this module is a worker; ``Worker`` starts one and sends it commands.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from prometheus_client import REGISTRY
from sqlalchemy.pool import NullPool, Pool, QueuePool

from sqlalchemy_pool_exporter import instrument, uninstrument
from tests.support.fakes import FakeConnection
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIRECTORY = "SQLALCHEMY_POOL_EXPORTER_DIR"


class Worker:
    """A process with pools, whose segment is in a directory."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.workers"],
            cwd=ROOT,
            env={**os.environ, DIRECTORY: str(directory), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def do(self, action: str, *arguments: Any) -> Any:
        """Make the worker run an action, and return the result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([action, *arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the worker ended instead of doing {action}"
        return json.loads(answer)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


class _Actions:
    """The actions of a worker."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._held: list[Any] = []

    def pool(self, name: str, size: int = 2, max_overflow: int = 1) -> None:
        """Instrument a pool; with size -1, a pool without limits."""
        pool = (
            NullPool(FakeConnection)  # type: ignore[arg-type]
            if size < 0
            else QueuePool(FakeConnection, pool_size=size, max_overflow=max_overflow)  # type: ignore[arg-type]
        )
        instrument(pool, name=name)
        self._pools[name] = pool

    def cycle(self, name: str, times: int) -> None:
        """Check out and return."""
        for _ in range(times):
            self._pools[name].connect().close()

    def hold(self, name: str, times: int) -> None:
        """Check out and keep."""
        self._held += [self._pools[name].connect() for _ in range(times)]

    def uninstrument(self, name: str) -> None:
        """Uninstrument a pool."""
        uninstrument(self._pools.pop(name))

    def sample(self, name: str, pool: str) -> float | None:
        """Return a metric of its own registry."""
        return REGISTRY.get_sample_value(f"sqlalchemy_pool_{name}", {"pool": pool})

    def fork(self, name: str, times: int) -> int:
        """Fork a child that checks out and returns, and then stays; return its pid once it has returned."""
        done, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.cycle(name, times)
            os.write(said, b".")
            signal.pause()
        os.close(said)
        assert os.read(done, 1), "the child ended before it was done"
        os.close(done)
        return pid


def main() -> None:
    """Run the actions from standard input until it ends."""
    actions = _Actions()
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        do: Callable[..., Any] = getattr(actions, action)
        sys.stdout.write(json.dumps(do(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
