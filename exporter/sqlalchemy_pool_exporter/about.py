# SPDX-License-Identifier: Apache-2.0
"""The version of this package, and how its hot path runs."""

from __future__ import annotations

import sys
from functools import cache
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

    Nothing is imported for it: a process that records has loaded the hook that every checkout runs through.
    """
    module = sys.modules.get(f"{__package__}.recording.checkout_cy")
    if module is None:
        return ""
    is_compiled = str(getattr(module, "__file__", "")).endswith(tuple(EXTENSION_SUFFIXES))
    return "compiled" if is_compiled else "interpreted"
