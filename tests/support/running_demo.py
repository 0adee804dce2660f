# SPDX-License-Identifier: Apache-2.0
"""The demo as a process, and the files and processes that it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.paths import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEMO = ("-m", "demo")


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.lines: list[str] = []

    def read_until(self, start: str) -> str:
        """Read the output up to a line that begins with ``start``, and return the line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return line
        message = f"the output ended without {start!r}: {self.lines}, {self.end()}"
        raise AssertionError(message)

    def wait_for(self, condition: Callable[[Demo], bool]) -> None:
        """Wait until a condition holds that the output does not announce."""

        def holds() -> bool:
            if condition(self):
                return True
            assert self.process.poll() is None, self.end()
            return False

        assert eventually(holds, poll_seconds=0.002)

    def end(self) -> tuple[int, str, str]:
        """Return the exit status, all output and all errors, once the demo has ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # Not communicate(), which would skip the text that read_until() has buffered.
        self.lines.append(self.process.stdout.read())
        errors = self.process.stderr.read()
        return self.process.wait(), "".join(self.lines), errors


@contextmanager
def demo(
    directory: Path, *arguments: str, command: tuple[str, ...] = DEMO, **popen: object
) -> Iterator[Demo]:
    """Run the demo with its temporary files in `directory`."""
    with subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},  # type: ignore[call-overload]
    ) as process:
        try:
            yield Demo(process, directory)
        finally:
            if process.poll() is None:  # the test has failed, and reports its own error
                process.terminate()


def has(pattern: str) -> Callable[[Demo], bool]:
    """Return a condition: the directory for temporary files has a file that matches ``pattern``."""
    return lambda running: any(running.directory.glob(pattern))


def working_in(directory: Path) -> list[str]:
    """Return the command lines of the processes whose working directory is somewhere in `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # the process has ended, or belongs to another user
    return found
