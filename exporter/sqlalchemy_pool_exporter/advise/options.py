# SPDX-License-Identifier: Apache-2.0
"""The options of the command ``advise``."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

from sqlalchemy_pool_exporter import environment

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "": 1.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|w|)")
_ONLY_PROMETHEUS: Final = {"range": "1d", "window": "5m", "match": ""}
_WHAT: Final = (
    "say which pool_size, max_overflow, pool_timeout and pool_recycle the traffic asks for, and why"
)
_DESCRIPTION: Final = (
    f"{_WHAT[0].upper()}{_WHAT[1:]}. It watches an endpoint or a directory for some time, or looks at each pool in its "
    "busiest window of a Prometheus server's range, and replays that traffic through pools of other sizes."
)
_EPILOG: Final = """\
exit status:
  0  the advice was printed, also if it is to change nothing
  1  no answer, no live pool, or no pool of that name
  2  a wrong option
  130  Ctrl-C

examples:
  sqlalchemy-pool-exporter advise http://localhost:10079 --for 60s
  sqlalchemy-pool-exporter advise /run/orders/pools --wait 20ms --pool orders
  sqlalchemy-pool-exporter advise --prometheus http://prometheus:9090 --range 7d --match 'job="orders"' --json
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to those of the command line, and return its parser."""
    command: argparse.ArgumentParser = commands.add_parser(
        "advise",
        help=_WHAT,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "where",
        nargs="?",
        metavar="DIR_OR_URL",
        help=f"directory of the applications, on this machine (also {environment.DIRECTORY}), or URL of a sidecar or "
        "of serve(), such as http://localhost:10079",
    )
    command.add_argument(
        "--prometheus", metavar="URL", help="a Prometheus server instead, or what has its API"
    )
    command.add_argument("--range", type=_duration, metavar="TIME", help="of Prometheus: how far back (1d)")
    command.add_argument(
        "--window", type=_duration, metavar="TIME", help="of Prometheus: how long the busiest time is (5m)"
    )
    command.add_argument(
        "--match",
        metavar="LABELS",
        help="of Prometheus: labels that series must have, such as 'job=\"orders\"'",
    )
    how_long = command.add_mutually_exclusive_group()
    how_long.add_argument(
        "--for",
        dest="seconds",
        type=_duration,
        metavar="TIME",
        help="how long an endpoint or a directory is watched (30s); when it is busy, if possible",
    )
    how_long.add_argument(
        "--since-start",
        action="store_true",
        help="take the mean since the first process was started, from one read; busy times are larger, and "
        "what replaced processes did before is in it",
    )
    command.add_argument(
        "--wait",
        type=_duration,
        default=0.05,
        metavar="TIME",
        help="how long callers may wait at most (50ms)",
    )
    command.add_argument(
        "--share",
        type=_share,
        default=0.99,
        metavar="SHARE",
        help="of the callers, of whom that holds (0.99)",
    )
    command.add_argument(
        "--burst",
        type=_times,
        default=1.5,
        metavar="TIMES",
        help="with max_overflow, the same holds at so many times the traffic (1.5)",
    )
    command.add_argument(
        "--pool", action="append", default=[], metavar="NAME", help="this pool; may be given many times"
    )
    command.add_argument(
        "--max-connections",
        type=_connections,
        metavar="NUMBER",
        help="of the database server, where no probe tells; 3 of them are reserved",
    )
    command.add_argument(
        "--reserve",
        type=_reserve,
        default=0.1,
        metavar="SHARE",
        help="of max_connections, to be left for deployments and people (0.1)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def check(options: argparse.Namespace, fail: Any) -> None:
    """Call ``fail`` with what is wrong with options that do not go together, and set the defaults of the others."""
    is_prometheus = options.prometheus is not None
    if is_prometheus and options.where is not None:
        fail("give a directory or a URL, or --prometheus, not both")
    if is_prometheus and (options.seconds is not None or options.since_start):
        fail("--for and --since-start are of an endpoint or a directory; of Prometheus, it is --range")
    for name, default in _ONLY_PROMETHEUS.items():
        if getattr(options, name) is None:
            setattr(options, name, default if name == "match" else _duration(default))
        elif not is_prometheus:
            fail(f"--{name} is of --prometheus")
    if options.seconds is None:
        options.seconds = _duration("30s")


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time, such as 50ms, 30s, 5m, 12h or 7d")
    return seconds


def _share(text: str) -> float:
    return _number(text, 0.5, 0.999)


def _times(text: str) -> float:
    return _number(text, 1.0, 10.0)


def _reserve(text: str) -> float:
    return _number(text, 0.0, 0.9)


def _connections(text: str) -> int:
    return round(_number(text, 1.0, 1e6))


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
    return value
