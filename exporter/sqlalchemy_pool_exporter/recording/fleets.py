# SPDX-License-Identifier: Apache-2.0
"""Reads the directories of a registry's pools as if they were one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.directory import Fleet, Reader
from sqlalchemy_pool_exporter.segment.ledger import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sqlalchemy_pool_exporter.metrics import SegmentErrorKind
    from sqlalchemy_pool_exporter.segment.snapshot import Counts


class Fleets:
    """The workers of several directories. Mutable state: a reader of each. Not thread-safe."""

    def __init__(self) -> None:
        self._readers: dict[Path, Reader] = {}

    def __bool__(self) -> bool:
        return bool(self._readers)

    def add(self, directories: Iterable[Path]) -> None:
        """Read these directories, too, once they exist."""
        for directory in directories:
            if directory not in self._readers and directory.is_dir():
                self._readers[directory] = Reader(directory)

    def read(self, *, per_worker: bool = False) -> Fleet:
        """Return the workers and sums of all directories now."""
        fleets = {path: reader.read(per_worker=per_worker) for path, reader in self._readers.items()}
        if len(fleets) == 1:
            return next(iter(fleets.values()))
        # The numbers of two directories are the same.
        return joined(
            [
                replace(
                    fleet,
                    workers=tuple(
                        replace(worker, number=f"{path.name}/{worker.number}") for worker in fleet.workers
                    ),
                )
                for path, fleet in fleets.items()
            ]
        )


def joined(fleets: Sequence[Fleet]) -> Fleet:
    """Return several fleets as if they were one."""
    errors: Counter[SegmentErrorKind] = Counter()
    counts: dict[tuple[str, ...], list[Counts]] = {}
    sites: dict[tuple[str, ...], dict[str, list[Counts]]] = {}
    infos: dict[str, list[dict[str, str]]] = {}
    for fleet in fleets:
        errors.update(fleet.errors)
        for labels, row in fleet.counts.items():
            counts.setdefault(labels, []).append(row)
        for labels, by_site in fleet.view.sites.items():
            for site, row in by_site.items():
                sites.setdefault(labels, {}).setdefault(site, []).append(row)
        for pool, own in fleet.infos.items():
            known = infos.setdefault(pool, [])
            known += [info for info in own if info not in known]
    return Fleet(
        tuple(worker for fleet in fleets for worker in fleet.workers),
        dict(errors),
        View(
            {identity: label for fleet in fleets for identity, label in fleet.labels.items()},
            {labels: sums.total(rows) for labels, rows in counts.items()},
            {
                labels: {site: sums.total(rows) for site, rows in by_site.items()}
                for labels, by_site in sites.items()
            },
            infos,
            {pool for fleet in fleets for pool in fleet.with_overflow},
        ),
    )
