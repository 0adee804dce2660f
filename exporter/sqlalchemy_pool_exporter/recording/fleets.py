# SPDX-License-Identifier: Apache-2.0
"""Reads the directories of a registry's pools as if they were one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment import exemplars, sums
from sqlalchemy_pool_exporter.segment.directory import Fleet, Reader, is_directory
from sqlalchemy_pool_exporter.segment.ledger import Ledger, View
from sqlalchemy_pool_exporter.segment.own_errors import is_own

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from sqlalchemy_pool_exporter.metrics import SegmentErrorKind
    from sqlalchemy_pool_exporter.segment.exemplars import Exemplars
    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.snapshot import Counts


class Fleets:
    """The workers of several directories. Mutable state: a reader of each, and one ledger. Not thread-safe."""

    def __init__(self) -> None:
        self._readers: dict[Path, Reader] = {}
        # One for all: pools that differ in nothing but the directory are one, and others have other labels.
        self._ledger = Ledger()

    def __bool__(self) -> bool:
        return bool(self._readers)

    def add(self, directories: Iterable[Path]) -> None:
        """Read these directories, too, once they exist."""
        for directory in directories:
            if directory not in self._readers and _may_exist(directory):
                self._readers[directory] = Reader(directory, ledger=self._ledger)

    def read(self, *, per_worker: bool = False, beside: Collection[Identity] = ()) -> Fleet:
        """Return the workers and sums of all directories now."""
        found = {path: reader.find() for path, reader in self._readers.items()}
        errors: Counter[SegmentErrorKind] = Counter()
        for one in found.values():
            errors.update(one.errors)
        prefixes = _prefixes(list(found))
        return Fleet(
            # The numbers of two directories are the same.
            tuple(
                replace(worker, number=prefixes[path] + worker.number) if prefixes[path] else worker
                for path, one in found.items()
                for worker in one.workers
            ),
            dict(errors),
            self._ledger.view(
                [worker for one in found.values() for worker in one.live],
                [worker for one in found.values() for worker in one.resting],
                per_worker=per_worker,
                beside=beside,
            ),
        )


def _may_exist(directory: Path) -> bool:
    try:
        return is_directory(directory)
    except OSError as error:
        if not is_own(error):
            raise
        return True  # the reader counts it and says why


def _prefixes(directories: list[Path]) -> dict[Path, str]:
    """Return what tells apart the workers of several directories."""
    if len(directories) == 1:
        return dict.fromkeys(directories, "")
    names = Counter(path.name for path in directories)
    return {path: f"{path.name if names[path.name] == 1 else path}/" for path in directories}


def joined(fleets: Sequence[Fleet]) -> Fleet:
    """Return several fleets as if they were one."""
    errors: Counter[SegmentErrorKind] = Counter()
    counts: dict[tuple[str, ...], list[Counts]] = {}
    sites: dict[tuple[str, ...], dict[str, list[Counts]]] = {}
    infos: dict[str, list[dict[str, str]]] = {}
    traced: dict[tuple[str, ...], list[Exemplars]] = {}
    for fleet in fleets:
        errors.update(fleet.errors)
        for labels, row in fleet.counts.items():
            counts.setdefault(labels, []).append(row)
        for labels, by_site in fleet.view.sites.items():
            for site, row in by_site.items():
                sites.setdefault(labels, {}).setdefault(site, []).append(row)
        for labels, some in fleet.view.exemplars.items():
            traced.setdefault(labels, []).append(some)
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
            {labels: exemplars.newest(rows) for labels, rows in traced.items()},
        ),
    )
