# SPDX-License-Identifier: Apache-2.0
"""The version of this package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # looking it up takes longer than a scrape of one pool
def package_version() -> str:
    """Return the version of this package, or ``unknown`` if the package is not installed."""
    try:
        return version("sqlalchemy-pool-exporter")
    except PackageNotFoundError:
        return "unknown"
