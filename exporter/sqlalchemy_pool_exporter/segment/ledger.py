# SPDX-License-Identifier: Apache-2.0
"""Adds up what all workers say of their pools, and knows which names are shown, and under which label.

A name that no live pool has had for the time of retention is left out, and what was remembered of it is forgotten.
So are the oldest of many such names. A name that a live pool has keeps all its counts, although a worker that has no
such pool any more drops its part from its file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from . import exemplars, sums
from .block import ACTIVE, FIRST_COUNTER, HAS_OVERFLOW, OTHER_SITES, SITE_COUNTS, WITHOUT_SITES
from .entries import CHECKOUTS, OTHER
from .label import labels
from .pages import MOST_ENDED, RETENTION_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from .exemplars import Exemplars
    from .identity import Identity
    from .snapshot import Counts
    from .worker import Worker, WorkerPool

_OTHERS: Final = OTHER_SITES - FIRST_COUNTER
_WITHOUT: Final = WITHOUT_SITES - FIRST_COUNTER
# By the labels of the series: pool, or pool and worker.
CountsByLabels = dict[tuple[str, ...], "Counts"]
Infos = list[dict[str, str]]
# By the labels of the series, and by the site.
SitesByLabels = dict[tuple[str, ...], dict[str, "Counts"]]
ExemplarsByLabels = dict[tuple[str, ...], "Exemplars"]
# By the pool, the number of its worker (empty in sums over all), and the site; None for the counts of the pool itself.
_Rows = dict[tuple["Identity", str, str | None], "list[Counts]"]


@dataclass(frozen=True, slots=True)
class View:
    """The pools of all workers at one moment, by the label ``pool``."""

    labels: dict[Identity, str]  # of the pools that are shown, and of those beside them
    counts: CountsByLabels  # sums over all workers that ever ran
    sites: SitesByLabels  # likewise, of the sites
    infos: dict[str, Infos]  # of live pools, or the last ones known
    with_overflow: set[str]  # pools that can open connections beyond their size
    exemplars: ExemplarsByLabels = field(default_factory=dict)  # the newest ones

    @property
    def labels_by_name(self) -> dict[str, list[str]]:
        """The labels of the pools of each name: several if the pools of one default name differ."""
        found: dict[str, list[str]] = {}
        for identity, label in sorted(self.labels.items(), key=lambda item: item[1]):
            if label not in found.setdefault(identity.name, []):
                found[identity.name].append(label)
        return found


class _Resting:
    """The workers whose counts do not change: they are gone, or their file is deleted or cannot be read now."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.rows: _Rows = {}
        _add(self.rows, workers)
        self.rows = _compacted(self.rows)
        pools = [pool for worker in workers for pool in worker.pools]
        self.exemplars = [*_with_exemplars(workers)]
        self.ends = _latest(pools)
        # Processes ended with such pools, so it is likely that the next ones make them again.
        self.last_pools = {pool.identity for pool in pools if pool.snapshot.is_active}
        self.with_overflow = {pool.identity for pool in pools if pool.snapshot.has_overflow}
        self.infos: dict[Identity, Infos] = {}
        for pool in pools:
            self.infos.setdefault(pool.identity, [pool.info])


class Ledger:
    """The sums over all workers. Not thread-safe.

    Mutable state: counts that no file has any more; the sums over workers at rest; when a live pool had each name; what
    is known of each name; and the last labels.
    """

    def __init__(
        self, *, retention: float = RETENTION_SECONDS, wall: Callable[[], float] = time.time
    ) -> None:
        """Begin without counts.

        Args:
            retention: seconds for which a name is shown after its last pool.
            wall: Unix time.
        """
        self.retention = retention
        self._wall = wall
        self._kept: _Rows = {}
        self._resting = _Resting([])
        self._last_live: dict[Identity, float] = {}
        self._infos: dict[Identity, Infos] = {}
        self._with_overflow: set[Identity] = set()
        self._labels: tuple[set[Identity], dict[Identity, str]] = (set(), {})

    def keep(self, workers: Iterable[Worker]) -> None:
        """Keep the counts of workers that will not be passed again."""
        _add(self._kept, workers)
        self._kept = _compacted(self._kept)

    def keep_what_is_lost(self, before: Worker, after: Worker) -> None:
        """Keep the counts that a worker's file had before and has no more."""
        if before.drops == after.drops:
            return
        old: _Rows = {}
        new: _Rows = {}
        _add(old, [before])
        _add(new, [after])
        for key, rows in old.items():
            total = sums.total(rows)
            left = sums.total(new[key]) if key in new else [0.0] * len(total)
            if any(more < less for more, less in zip(left, total, strict=True)):
                self._kept.setdefault(key, []).extend(rows)
        self._kept = _compacted(self._kept)

    def view(
        self,
        live: Sequence[Worker],
        resting: list[Worker],
        *,
        per_worker: bool = False,
        beside: Collection[Identity] = (),
    ) -> View:
        """Return the sums now.

        Args:
            live: workers that run.
            resting: all other workers that are known.
            per_worker: return counts for each worker instead of sums over all workers.
            beside: pools that another ledger shows in the same scrape, so that one label never means two of them.
        """
        # Cheap: a comparison of lists treats identical objects as equal and does not compare their fields.
        if self._resting.workers != resting:
            self._resting = _Resting(resting)
        rows: _Rows = {}
        for known_rows in (self._resting.rows, self._kept):
            for (identity, number, site), some in known_rows.items():
                rows.setdefault((identity, number if per_worker else "", site), []).extend(some)
        _add(rows, live, per_worker=per_worker)
        shown = self._shown(live, {identity for identity, _, _ in rows})
        known = shown.union(beside)
        if self._labels[0] != known:
            self._labels = (known, labels(known))
        by_identity = self._labels[1]
        self._learn(live, shown)
        counts, sites = _labelled(rows, by_identity, per_worker=per_worker)
        return View(
            by_identity,
            counts,
            sites,
            self._infos_by_label(by_identity),
            {by_identity[identity] for identity in self._with_overflow},
            self._exemplars(live, by_identity, per_worker=per_worker),
        )

    def _exemplars(
        self, live: Sequence[Worker], by_identity: dict[Identity, str], *, per_worker: bool
    ) -> ExemplarsByLabels:
        rows: dict[tuple[str, ...], list[Exemplars]] = {}
        for number, pool in (*_with_exemplars(live), *self._resting.exemplars):
            label = by_identity.get(pool.identity)
            if label is not None:
                series: tuple[str, ...] = (label, number) if per_worker else (label,)
                rows.setdefault(series, []).append(pool.snapshot.exemplars)
        return {series: exemplars.newest(some) for series, some in rows.items()}

    def _shown(self, live: Sequence[Worker], every: set[Identity]) -> set[Identity]:
        now, last = self._wall(), self._last_live
        of_live: set[Identity] = set()
        not_live: list[WorkerPool] = []
        for worker in live:
            for pool in worker.pools:
                if pool.snapshot.fields[ACTIVE]:
                    of_live.add(pool.identity)
                else:
                    not_live.append(pool)
        gone = _latest(not_live)
        for identity, ended in (*self._resting.ends.items(), *gone.items()):
            # Of a pool that was not folded it is not known when it went: since it was first seen so.
            last[identity] = max(last.get(identity, 0.0), min(ended, now)) or now
        last.update(dict.fromkeys(of_live, now))
        self._last_live = last = {identity: last.get(identity, now) for identity in every}
        shown = {identity for identity, since in last.items() if now - since <= self.retention}
        resting = {pool.identity for pool in not_live if pool.is_resting} | self._resting.last_pools
        others = sorted(shown - of_live - resting, key=last.__getitem__)
        shown.difference_update(others[: -MOST_ENDED or None] if len(others) > MOST_ENDED else ())
        self._kept = {key: rows for key, rows in self._kept.items() if key[0] in shown}
        return shown

    def _learn(self, live: Sequence[Worker], shown: set[Identity]) -> None:
        said: dict[Identity, Infos] = {}
        for worker in live:
            for pool in worker.pools:
                fields = pool.snapshot.fields
                if fields[HAS_OVERFLOW]:
                    self._with_overflow.add(pool.identity)
                if not fields[ACTIVE]:
                    self._infos.setdefault(pool.identity, [pool.info])
                elif pool.info not in said.setdefault(pool.identity, []):
                    said[pool.identity].append(pool.info)
        self._with_overflow |= self._resting.with_overflow
        self._infos = self._resting.infos | self._infos
        self._infos = {
            identity: infos for identity, infos in (self._infos | said).items() if identity in shown
        }
        self._with_overflow &= shown

    def _infos_by_label(self, by_identity: dict[Identity, str]) -> dict[str, Infos]:
        found: dict[str, Infos] = {}
        for identity, infos in self._infos.items():
            some = found.setdefault(by_identity[identity], [])
            some += [info for info in infos if info not in some]
        return found


def _with_exemplars(workers: Iterable[Worker]) -> Iterator[tuple[str, WorkerPool]]:
    for worker in workers:
        for pool in worker.pools:
            if pool.snapshot.exemplars:
                yield worker.number, pool


def _latest(pools: Iterable[WorkerPool]) -> dict[Identity, float]:
    """Return when the last pool of each identity went; 0 if that is not known."""
    found: dict[Identity, float] = {}
    for pool in pools:
        found[pool.identity] = max(found.get(pool.identity, 0.0), pool.ended or 0.0)
    return found


def _labelled(
    rows: _Rows, by_identity: dict[Identity, str], *, per_worker: bool
) -> tuple[CountsByLabels, SitesByLabels]:
    every: dict[tuple[tuple[str, ...], str | None], list[Counts]] = {}
    for (identity, number, site), some in rows.items():
        label = by_identity.get(identity)
        if label is not None:
            series: tuple[str, ...] = (label, number) if per_worker else (label,)
            every.setdefault((series, site), []).extend(some)
    counts: CountsByLabels = {}
    sites: SitesByLabels = {}
    others = {series: some for (series, site), some in every.items() if site == OTHER}
    for (series, site), some in every.items():
        if site is None:
            counts[series] = summed = sums.total(some)
            if series in others:
                others[series] += [row[_OTHERS : _OTHERS + SITE_COUNTS] for row in some]
            else:  # nearly always: a part of the sum of the rows
                others[series] = [list(summed[_OTHERS : _OTHERS + SITE_COUNTS])]
        elif site != OTHER:
            sites.setdefault(series, {})[site] = sums.total(some)
    for series, some in others.items():
        sites.setdefault(series, {})[OTHER] = sums.total(some)
    for series, by_site in sites.items():
        # Where nothing has a site, none is shown.
        if any(one[CHECKOUTS] for one in by_site.values()):
            without = counts[series][_WITHOUT : _WITHOUT + SITE_COUNTS]
            by_site[OTHER] = sums.total([by_site[OTHER], without])
    return counts, sites


def _add(rows: _Rows, workers: Iterable[Worker], *, per_worker: bool = True) -> None:
    for worker in workers:
        number = worker.number if per_worker else ""
        for pool in worker.pools:
            identity, snapshot = pool.identity, pool.snapshot
            rows.setdefault((identity, number, None), []).append(snapshot.counts)
            for site in snapshot.sites:
                rows.setdefault((identity, number, site.text or OTHER), []).append(site.counts)


def _compacted(rows: _Rows) -> _Rows:
    return {key: sums.compacted(some) for key, some in rows.items()}
