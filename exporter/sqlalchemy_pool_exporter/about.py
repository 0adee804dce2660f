# SPDX-License-Identifier: Apache-2.0
"""The version of this package, and how its hot path runs."""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version


@cache  # looking it up takes longer than a scrape of one pool
def package_version() -> str:
    """Return the version of this package, or ``unknown`` if the package is not installed."""
    try:
        return version("sqlalchemy-pool-exporter")
    except PackageNotFoundError:
        return "unknown"


def hot_path() -> str:
    """Return whether this process runs the hot path ``compiled`` or ``interpreted``; an empty text if it has none.

    Nothing is imported for it: a process that records has loaded the modules.
    """
    return _hot_path(len(sys.modules))


@lru_cache(1)  # each scrape asks, and a process may have thousands of modules: it took a tenth of a scrape
def _hot_path(_number_of_modules: int) -> str:
    folder = f"{__package__}.recording."
    files = [
        str(getattr(module, "__file__", ""))
        for name, module in list(sys.modules.items())
        if name.startswith(folder) and name.endswith("_cy")
    ]
    if not files:
        return ""
    return "compiled" if all(file.endswith(tuple(EXTENSION_SUFFIXES)) for file in files) else "interpreted"
