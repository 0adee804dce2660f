# SPDX-License-Identifier: Apache-2.0
"""The real command line as a process, for the tests: started, scraped, signalled, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Self

from tests.support.process_log import ProcessLog
from tests.support.samples import Samples, key, read_samples
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "sqlalchemy_pool_exporter", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


class Sidecar:
    """``sqlalchemy-pool-exporter serve`` on a port of its own; ``program`` replaces the command of this environment."""

    def __init__(self, *arguments: str | Path, program: Path | None = None, **environment: str) -> None:
        command = [program] if program else [sys.executable, "-m", "sqlalchemy_pool_exporter"]
        self._process = subprocess.Popen(
            [*command, "serve", "--listen-address", "127.0.0.1:0", *arguments],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._log = ProcessLog(self._process.stderr)
        self.log = self._log.lines
        self.url = self.wait_for(r"listening on (\S+)")

    def wait_for(self, pattern: str) -> str:
        """Wait until the log says something, and return its first group, or all of it."""
        found = self._log.wait_for(pattern)
        assert found is not None, f"it did not say {pattern!r}: {self._log}"
        return found

    def get(
        self,
        path: str = "/metrics",
        *,
        accept: str = "",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Return the status and the body of an answer."""
        sent = {"Accept": accept, **(headers or {})}
        request = urllib.request.Request(self.url + path, headers=sent, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self) -> Samples:
        """Scrape the sidecar."""
        return read_samples(self.get()[1])

    def value(self, name: str, **labels: str) -> float | None:
        """Return one sample, ``sqlalchemy_pool_<name>``."""
        return self.samples().get(key(name, **labels))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        self.send(number)
        status = self._process.wait(SECONDS)
        self._log.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGKILL)
