# SPDX-License-Identifier: Apache-2.0
"""Runs the command ``run``: becomes the application, with what instruments it in its environment."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.errors import LaunchError

from .options import check

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

_SITE: Final = str(Path(__file__).parent / "site")
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of one's own is made in it
# Python ignores these when it starts, and what is ignored stays so in the program that a process becomes.
_IGNORED_BY_PYTHON: Final = [
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
]
# As a shell has them.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def run(options: Namespace) -> int:
    """Become the command. The process, its standard streams, signals and exit status are then the command's own.

    Returns:
        The exit status if the command cannot be started.

    Raises:
        LaunchError: there is no command, or an option is wrong.
    """
    command: list[str] = options.arguments
    if not command:
        raise LaunchError("give a command to run, such as: sqlalchemy-pool-exporter run -- gunicorn app:app")
    check(options)
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, _environment(options, os.environ))  # noqa: S606 - no shell, on purpose
    except OSError as error:
        hint = f" (try: run -- python {command[0]})" if command[0].endswith(".py") else ""
        sys.stderr.write(f"sqlalchemy-pool-exporter: cannot run {command[0]!r}: {error.strerror}{hint}\n")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def _environment(options: Namespace, present: Mapping[str, str]) -> dict[str, str]:
    given = {
        environment.AUTO: "1",
        # The command may change its working directory.
        environment.DIRECTORY: options.directory and str(Path(options.directory).absolute()),
        environment.SERVE: options.serve,
        environment.EXCLUDE: ",".join(options.exclude),
        environment.OTEL: "1" if options.otel else None,
        environment.SITES: options.sites,
        environment.APPLICATION: options.application,
        environment.LEAK_AFTER: options.leak_after,
    }
    new = {**present, **{name: value for name, value in given.items() if value}}
    # An empty path among others is the working directory.
    paths = present["PYTHONPATH"].split(os.pathsep) if present.get("PYTHONPATH") else []
    new["PYTHONPATH"] = os.pathsep.join((_SITE, *(path for path in paths if path != _SITE)))
    if options.serve and not new.get(environment.DIRECTORY):
        # Without one, each process would show itself alone, and only one of them.
        new[environment.DIRECTORY] = tempfile.mkdtemp(
            prefix="sqlalchemy-pool-exporter-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
        )
    return new
