# SPDX-License-Identifier: Apache-2.0
"""An application that is tried: what is installed for it, and one run of it on a database of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 180.0


class Application(NamedTuple):
    """What is installed, and the function that starts it, uses it and returns what it answered."""

    name: str
    requirements: tuple[str, ...]
    use: Callable[[Run], Any]


@dataclass
class Run:
    """One run, plain or below a *launcher*, in an environment and a folder of its own."""

    programs: Path  # the environment's bin
    folder: Path
    database: str  # postgresql://user@host:port/name
    port: int  # for the application
    launcher: tuple[str, ...] = ()
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def url(self, drivername: str) -> str:
        """Return the database's URL for a driver."""
        return self.database.replace("postgresql", drivername, 1)

    def start(self, program: str, *arguments: str) -> None:
        """Start a program of the environment that runs until the end."""
        self.started.append(
            subprocess.Popen(self._command(program, arguments), start_new_session=True, **self._options())
        )

    def call(self, program: str, *arguments: str) -> str:
        """Run a program of the environment to its end; return what it printed, and keep its status."""
        done = subprocess.run(
            self._command(program, arguments),
            timeout=SECONDS,
            check=False,
            **{**self._options(), "stdout": subprocess.PIPE},
        )
        self.statuses.append(done.returncode)
        return str(done.stdout, "utf-8", "replace")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that the application answers, once it does."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - as above
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                raise SystemExit(f"{path} answered {error.code}: {error.read()[:500]!r}") from error
            except OSError:
                if time.monotonic() > deadline or any(each.poll() is not None for each in self.started):
                    raise SystemExit(f"{path} does not answer:\n{self.said()}") from None
                time.sleep(0.5)

    def stop(self) -> None:
        """Ask what was started to end, as systemd does, and keep the statuses."""
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                self.statuses.append(process.wait(60))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                self.statuses.append(process.wait())
        self.started.clear()

    def said(self) -> str:
        """Return the end of what the programs printed."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def _command(self, program: str, arguments: tuple[str, ...]) -> list[str]:
        return [*self.launcher, str(self.programs / program), *arguments]

    def _options(self) -> dict[str, Any]:
        log = (self.folder / "log").open("ab")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(self.folder), "PATH": path, **self.variables}
        return {
            "cwd": self.folder,
            "env": environment,
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": log,
        }
