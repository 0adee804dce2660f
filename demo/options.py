# SPDX-License-Identifier: Apache-2.0
"""The demo's command line."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORT = 10079
SHORTEST_SECONDS = 15.0
EPILOG = """\
The scenes are healthy traffic, starvation, stale connections, recycling and a leak; each says what to look at, and
which metric shows it. PostgreSQL runs in a temporary directory (under TMPDIR), which is gone when the demo ends.

exit status:
  0    the demo was stopped, or, with --duration, every scene was visible in the metrics
  1    a scene was not visible, or nobody reads the output any more
  2    the demo could not start or go on
  130  (or 143, 129) with --duration: Ctrl-C (or SIGTERM, SIGHUP) came before every scene was checked
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The demo's options.

    Args:
        port: port of the metrics; 0 chooses a free one.
        duration: seconds for all scenes together; None repeats them until the user stops the demo.
        patience: seconds added to the duration if a scene is not visible yet. Only a slow machine needs them.
    """

    port: int = DEFAULT_PORT
    duration: float | None = None
    patience: float = 20.0


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        DemoError: a value is out of its range.
        SystemExit: the command line contains ``--help`` or is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Two small applications on a real PostgreSQL walk through the troubles of a connection pool, "
        "and /metrics shows them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--duration",
        type=float,
        metavar="SECONDS",
        help=f"play the scenes once, check that each was visible in the metrics, and end; at least "
        f"{SHORTEST_SECONDS:.0f} (default: play them again and again until Ctrl-C)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help="port of http://127.0.0.1:PORT/metrics; 0 chooses a free one (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    duration: float | None = given.duration
    if duration is not None and not (SHORTEST_SECONDS <= duration < math.inf):
        raise DemoError(
            f"--duration {duration:g} is out of range: five scenes need at least {SHORTEST_SECONDS:.0f} seconds"
        )
    if not 0 <= given.port <= 65535:
        raise DemoError(f"--port {given.port} is out of range: a port is a number from 0 to 65535")
    return Options(port=given.port, duration=duration)
