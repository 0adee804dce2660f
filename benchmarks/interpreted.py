# SPDX-License-Identifier: Apache-2.0
"""Measure the interpreted build beside the compiled one: in a process of its own, which takes turns when it is asked.

Both builds have modules of the same names, so one process cannot load both. The wheel has the source of each compiled
module, and this process loads that.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from .measure import Turn

_ROOT = Path(__file__).resolve().parent.parent


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


@contextmanager
def turns(variant: str, watcher: str) -> Iterator[tuple[Turn, Turn]]:
    """Start the process, and return what takes its turns: on a pool without anything, and on the watched one."""
    command = [sys.executable, "-m", "benchmarks.interpreted", variant, watcher]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        asked, answers = cast("tuple[IO[str], IO[str]]", (process.stdin, process.stdout))

        def turn(which: str) -> int:
            asked.write(which + "\n")
            return int(answers.readline())

        yield lambda: turn("bare"), lambda: turn("watched")
        asked.close()


def _serve(variant: str, watcher: str) -> None:
    sys.meta_path.insert(0, _Sources)
    from sqlalchemy_pool_exporter.about import hot_path  # noqa: PLC0415 - the modules are loaded from their sources

    from . import checkout  # noqa: PLC0415
    from .measure import no_collections  # noqa: PLC0415

    with ExitStack() as stack:
        bare, watched = checkout.pair(variant, watcher, stack)
        if hot_path() != "interpreted":
            raise SystemExit(f"this process runs the hot path {hot_path()}")
        with no_collections():
            for line in sys.stdin:
                take = watched if line.strip() == "watched" else bare
                take()  # as the process has waited, its code and data have left the processor's nearer caches
                print(take(), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
