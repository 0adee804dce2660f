# SPDX-License-Identifier: Apache-2.0
"""A real Redis for the queues of the recipes."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.ports import free_port
from tests.support.process_log import ProcessLog, end_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def running(directory: Path) -> Iterator[str]:
    """Run a Redis that keeps nothing on disk for the duration of the block; yield its URL."""
    port = free_port()
    command = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        f"{port}",
        "--save",
        "",
        "--dir",
        f"{directory}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        log = ProcessLog(process.stdout)
        try:
            assert log.wait_for("Ready to accept connections"), str(log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            end_process(process)
            log.close()
