# SPDX-License-Identifier: Apache-2.0
"""Take turns on a pool or an engine in a process of its own, as an application has it.

In one process the interpreter would adapt SQLAlchemy's bytecode (PEP 659) to all the pools in turn, watched and not.
What is adapted to one slows the other: a pre-ping then seemed to cost twice as much as it does. Nor can one process
load both builds, whose modules have the same names. The wheel has the source of each compiled module, and a process
that measures the interpreted build loads that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from .need import MissingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_ROOT = Path(__file__).resolve().parent.parent
_READY = "ready"


class _Sources:
    """Finds the source of a module ``*_cy`` where its extension module is, too."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's source, or None for all other modules."""
        if not name.endswith("_cy") or path is None:
            return None
        return spec_from_file_location(name, Path(path[0], name.rpartition(".")[2] + ".py"))


class Process:
    """A process with one pool; several start at once, and each is asked for a turn at a time.

    The function ``turn()`` of a module of this package makes the pool there, from arguments that are texts.
    """

    def __init__(self, module: str, *arguments: str, interpreted: bool = False) -> None:
        build = "interpreted" if interpreted else "installed"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.process", build, module, *arguments],
            cwd=_ROOT,
            # All hash alike, so that no dictionary of one has more collisions than that of the other.
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._asked, self._answers = cast(
            "tuple[IO[str], IO[str]]", (self._process.stdin, self._process.stdout)
        )
        self._is_ready = False

    def wait(self) -> None:
        """Wait until the process has its pool.

        Raises:
            MissingError: the watcher's package is not installed.
        """
        if self._is_ready:
            return
        said = self._answers.readline().strip()
        if said != _READY:
            raise MissingError(said or "the process ended")
        self._is_ready = True

    def turn(self) -> Any:
        """Let the process take a turn; return what it returns, a number or a list of numbers."""
        self._asked.write("\n")
        return json.loads(self._answers.readline())

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._asked.close()


def _serve(build: str, module: str, *arguments: str) -> None:
    if build == "interpreted":
        sys.meta_path.insert(0, _Sources)
    from sqlalchemy_pool_exporter.about import hot_path  # noqa: PLC0415 - the modules are loaded from their sources

    with ExitStack() as stack:
        try:
            take = import_module(f"benchmarks.{module}").turn(stack, *arguments)
        except MissingError as error:
            print(error, flush=True)
            return
        if build == "interpreted" and hot_path() == "compiled":
            raise SystemExit("this process runs the hot path compiled")
        print(_READY, flush=True)
        for _ in sys.stdin:
            take()  # as the process has waited, its code and data have left the processor's nearer caches
            print(json.dumps(take()), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
