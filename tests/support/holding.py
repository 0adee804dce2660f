# SPDX-License-Identifier: Apache-2.0
"""What is checked out, as a sidecar reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.held import held

if TYPE_CHECKING:
    from pathlib import Path


class Holding(NamedTuple):
    """A connection that is checked out."""

    site: str  # module:function, without the line
    holder: str
    label: str


def holding(directory: Path) -> list[Holding]:
    """Return the connections that are checked out by the processes of a directory."""
    return sorted(
        Holding(
            one.site.rpartition(":")[0] or one.site,
            worker.texts.holder(one.holder),
            worker.texts.label(one.label),
        )
        for worker in Reader(directory).read().live
        for pool in worker.pools
        for one in held(pool.snapshot)
    )
