# SPDX-License-Identifier: Apache-2.0
"""The log of a process that runs: read by a thread while it is written, and waited for."""

from __future__ import annotations

import re
import subprocess
import threading
from typing import IO

from tests.support.wait import SECONDS

# Staged runs start thirty processes at the same time.
STARTING_SECONDS = 4 * SECONDS


class ProcessLog:
    """The lines that a process has written so far, and ``""`` as the last one once it has ended."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[str] = []
        self._stream = stream
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> str | None:
        """Wait until the log has a match; return its first group, or all of it, or None if the process ended before."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, str(self))

        with self._changed:
            self._changed.wait_for(lambda: found() or "" in self.lines, STARTING_SECONDS)
        match = found()
        return match and match[match.re.groups and 1]

    def close(self) -> None:
        """Read the rest of what the process wrote, which must have ended."""
        self._thread.join()
        self._stream.close()

    def _read(self) -> None:
        for line in self._stream:
            self._append(line)
        self._append("")

    def _append(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()


def end_process(process: subprocess.Popen[str]) -> None:
    """End a process with SIGTERM, or with SIGKILL if it does not end; it may have ended already."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
