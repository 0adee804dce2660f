# SPDX-License-Identifier: Apache-2.0
"""Packages that only the benchmarks use: imported late, and loud when they are not there."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRA = "sqlalchemy-pool-exporter[bench]"


class MissingError(Exception):
    """A row cannot be measured; the message names the package and the extra that installs it."""


def need(module: str, distribution: str) -> Any:
    """Import *module* or say that *distribution* and the extra it belongs to are to be installed.

    Returns ``Any`` because some of the packages have no types, and none need be present when types are checked.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(distribution, str(error)) from error


def need_installed(module: str, distribution: str) -> None:
    """Do the same for what others will import."""
    if find_spec(module) is None:
        raise _missing(distribution, f"no module named {module!r}")


def _missing(distribution: str, reason: str) -> MissingError:
    return MissingError(f"{distribution} cannot be imported ({reason}): pip install '{EXTRA}'")
