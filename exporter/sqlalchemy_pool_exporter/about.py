# SPDX-License-Identifier: Apache-2.0
"""Which version of this package is at work."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # it does not change, and to ask takes longer than a scrape of one pool
def package_version() -> str:
    """Return the version of this package, or ``unknown`` where it runs without being installed."""
    try:
        return version("sqlalchemy-pool-exporter")
    except PackageNotFoundError:
        return "unknown"
