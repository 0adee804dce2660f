# SPDX-License-Identifier: Apache-2.0
"""Checks the options of ``run`` before the command starts: its processes would only log what is wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import LaunchError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

_PREFIXES: Final = ("class:", "module:")


def check(options: Namespace) -> None:
    """Look at the options that are given.

    Raises:
        LaunchError: a value has no meaning; the message names every one.
    """
    if faults := list(_faults(options)):
        raise LaunchError("\n  ".join(["wrong options:", *faults]))


def address(text: str) -> Address:
    """Return the address of ``--serve``, which may be a port alone.

    Raises:
        ValueError: it is none; the message names the wrong part.
    """
    return Address.parse(text if ":" in text else f":{text}")


def _faults(options: Namespace) -> Iterator[str]:
    if options.serve:
        try:
            address(options.serve)
        except ValueError as error:
            yield f"--serve {options.serve}: {error}, or a port alone"
    if options.sites and not _is_share(environment.share_of(options.sites)):
        yield f"--sites {options.sites}: expected on, off or a share between 0 and 1"
    if options.leak_after and not _is_seconds(options.leak_after):
        yield f"--leak-after {options.leak_after}: expected a number of seconds, 0 for never"
    for pattern in (
        ",".join(options.exclude).split(",") if options.exclude else ()
    ):  # as the processes read them
        if not pattern.strip() or pattern in _PREFIXES:
            yield f"--exclude {pattern!r}: the pattern is empty and would match nothing"


def _is_share(said: bool | float) -> bool:  # noqa: FBT001 - what the option says
    return isinstance(said, bool) or 0.0 < said < 1.0


def _is_seconds(text: str) -> bool:
    try:
        seconds = float(text)
    except ValueError:
        return False
    return 0.0 <= seconds < math.inf
