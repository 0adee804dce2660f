# SPDX-License-Identifier: Apache-2.0
"""Import packages that only the benchmarks use, and tell the user how to install a missing one."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRA = "sqlalchemy-pool-exporter[bench]"


class MissingError(Exception):
    """A row cannot be measured; the message names the package and the extra that installs it."""


def need(module: str, distribution: str) -> Any:
    """Import *module*, or raise MissingError with its *distribution* and the extra to install.

    Returns ``Any`` because some of the packages have no types, and the type check must pass without the packages.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(distribution, str(error)) from error


def need_installed(module: str, distribution: str) -> None:
    """Raise the same error if *module*, which other code will import, is not installed."""
    if find_spec(module) is None:
        raise _missing(distribution, f"no module named {module!r}")


def _missing(distribution: str, reason: str) -> MissingError:
    return MissingError(f"{distribution} cannot be imported ({reason}): pip install '{EXTRA}'")
