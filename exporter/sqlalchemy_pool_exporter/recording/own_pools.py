# SPDX-License-Identifier: Apache-2.0
"""The pools of this process that one registry shows, with the counts of those that are gone."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from sqlalchemy_pool_exporter.audit.rules import audit
from sqlalchemy_pool_exporter.families import add_counters, add_findings, add_sites
from sqlalchemy_pool_exporter.pausing import pause
from sqlalchemy_pool_exporter.segment import event_loop, facts, texts
from sqlalchemy_pool_exporter.segment.block import ACTIVE
from sqlalchemy_pool_exporter.segment.directory import Fleet
from sqlalchemy_pool_exporter.segment.identity import read
from sqlalchemy_pool_exporter.segment.label import labels
from sqlalchemy_pool_exporter.segment.ledger import Ledger
from sqlalchemy_pool_exporter.segment.own_errors import is_own
from sqlalchemy_pool_exporter.segment.pages import MOST_ENDED, RETENTION_SECONDS
from sqlalchemy_pool_exporter.segment.sites import ShownSites
from sqlalchemy_pool_exporter.segment.store import BlockStore
from sqlalchemy_pool_exporter.segment.worker import Worker, WorkerPool
from sqlalchemy_pool_exporter.states_cy import add_capacity, add_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter.builder_cy import Builder
    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.ledger import View
    from sqlalchemy_pool_exporter.segment.pages import Pages, Totals

    from .recorder import Recorder

_logger = logging.getLogger("sqlalchemy_pool_exporter")

T = TypeVar("T")

_MOST_SAID: Final = 1024
# A read that overlapped a change is done again, at once and then after these pauses in seconds.
_PAUSES: Final = (0.0, 0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)


class Read(NamedTuple):
    """What was recorded at one moment."""

    live: list[Recorder]
    pools: list[WorkerPool]  # those that no directory has, with the totals of pools that are gone

    @property
    def identities(self) -> set[Identity]:
        """Those of the pools that are shown."""
        return {recorder.identity for recorder in self.live} | {
            pool.identity for pool in self.pools if pool.ended is None or _is_shown(pool.ended)
        }


class OwnPools:
    """The pools of this process in one registry.

    The mutable state is the recorders, the descriptions of their pools and of those that are gone, the stores that
    their blocks are in, and the ledger of their sums. It is changed under the lock of ``INSTRUMENTED``.
    """

    def __init__(self) -> None:
        self.memory = BlockStore()
        self.errors = 0
        self._recorders: dict[Recorder, None] = {}
        self._texts: set[bytes] = set()
        self._stores: dict[BlockStore, None] = {self.memory: None}
        self._ledger = Ledger()
        self._sites = ShownSites()
        self._said: set[bytes] = set()  # descriptions of which the log said that several pools have them

    def __bool__(self) -> bool:
        """Whether there are pools, or counts of pools that are gone without ``close()``."""
        return bool(self._texts)

    @property
    def names(self) -> set[str]:
        """The names of the pools, without suffixes."""
        return {identity.name for _, identity in self._known()}

    @property
    def directories(self) -> set[Path | None]:
        """The directories that the pools are recorded in, and None for memory."""
        return {store.directory for store in list(self._stores)} if self else set()

    def add(self, recorder: Recorder, *, is_alone: bool) -> None:
        """Show a pool; unless it is alone, the log says once that others have the name."""
        if not (is_alone or recorder.text in self._said) and (
            # Not any(): a time limit that strikes while a generator that was not exhausted is closed is lost.
            max((pages.live(recorder.text) for pages in recorder.store.pages()), default=0) > 1
        ):
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said.add(recorder.text)
            _logger.info("several pools are named %r: their numbers are summed", recorder.identity.name)
        self._recorders[recorder] = None
        self._stores[recorder.store] = None
        self._texts.add(recorder.text)
        if len(self._texts) > 2 * (len(self._recorders) + MOST_ENDED):
            self._texts = {text for text, _ in self._known()}

    def folded(self, recorder: Recorder) -> None:
        """Show a pool no more by itself: its counts are in the totals of its name."""
        self._recorders.pop(recorder, None)

    def remove(self, recorder: Recorder) -> None:
        """Show the counts of a pool that was folded no more, unless there is another one of its name."""
        self._recorders.pop(recorder, None)
        if not any(pages.live(recorder.text) for store in self._stores for pages in store.pages()):
            self._texts.discard(recorder.text)
            for pages in self.memory.pages():
                pages.drop(recorder.text)

    def label(self, identity: Identity) -> str:
        """Return the value of the label ``pool`` for pools of this identity."""
        return labels({identity, *(known for _, known in self._known())})[identity]

    def _known(self) -> Iterator[tuple[bytes, Identity]]:
        for recorder in list(self._recorders):
            yield recorder.text, recorder.identity
        for store in list(self._stores):
            for totals in self._totals(store.pages()):
                if _is_shown(totals.ended):
                    yield totals.text, read(totals.text).identity

    def _totals(self, several: Iterator[Pages]) -> Iterator[Totals]:
        for pages in several:
            for totals in pages.totals():
                if totals.text in self._texts:
                    yield totals

    # -- a scrape

    def read(self) -> Read:
        """Copy what is recorded now."""
        return self._unchanged(self._read_once)

    def every(self) -> list[WorkerPool]:
        """Copy what is recorded now of this process, in directories, too, with the totals of pools that are gone."""
        return self._unchanged(self._read_every)

    def _unchanged(self, read: Callable[[], T]) -> T:
        for seconds in _PAUSES:
            before = self._changes()
            answer = read()
            if before == self._changes() and not any(changes & 1 for changes in before):
                break
            time.sleep(seconds)
        return answer

    def _changes(self) -> list[int]:
        return [pages.changes for store in list(self._stores) for pages in store.pages()]

    def _read_once(self) -> Read:
        unshared = {id(pages) for store in list(self._stores) for pages in store.unshared_pages()}
        live, pools = [], []
        for recorder in list(self._recorders):
            pause()
            is_shared = id(recorder.storage.pages) not in unshared
            try:
                if is_shared:  # what is recorded is read from the directory
                    is_live = bool(recorder.storage.doubles[ACTIVE])
                else:
                    pool = WorkerPool(recorder.identity, recorder.info, recorder.snapshot())
                    is_live = pool.snapshot.is_active
            except Exception as error:
                if not is_own(error):
                    raise
                # One odd pool never fails the scrape.
                self.errors += 1
                continue
            if is_live:
                live.append(recorder)
            if not is_shared:
                pools.append(pool)
        for store in list(self._stores):
            pools.extend(map(_of_totals, self._totals(store.unshared_pages())))
        return Read(live, pools)

    def _read_every(self) -> list[WorkerPool]:
        pools = []
        for recorder in list(self._recorders):
            pause()
            try:
                pools.append(WorkerPool(recorder.identity, recorder.info, recorder.snapshot()))
            except Exception as error:
                if not is_own(error):
                    raise
                self.errors += 1  # as above
        for store in list(self._stores):
            pools.extend(map(_of_totals, self._totals(store.pages())))
        return pools

    def fleet(self, found: Read, beside: View | None = None, number: str = "") -> Fleet:
        """Return the pools that no directory has as those of one worker.

        Args:
            found: what was read.
            beside: what the directories show.
            number: of the worker.
        """
        worker = Worker(
            number,
            b"",
            0,
            is_live=True,
            pools=tuple(found.pools),
            facts=facts.read(facts.of_this_process()) if number else facts.Facts(None, None),
            texts=texts.of_this_process(),
        )
        known = found.identities.union(beside.labels if beside else ())
        return Fleet((worker,), {}, self._ledger.view([worker], [], beside=known))

    def add_to(self, builder: Builder, found: Read, beside: View | None, pid: int) -> None:
        """Add the pools of this process that are in no directory, so that no other process sees them.

        If a directory has a pool of that label, too, they get the label ``worker``: two such processes, asked in turn,
        must not make one series go back and forth.

        Args:
            builder: builds the scrape.
            found: the pools of this process.
            beside: what the directories have added.
            pid: of this process.
        """
        fleet = self.fleet(found, beside)
        view = fleet.view
        others = beside.infos if beside else {}
        owners: dict[str, tuple[str, ...]] = {
            label: (label, f"pid{pid}") if label in others else (label,) for label in view.labels.values()
        }
        for label, infos in view.infos.items():
            for info in infos:
                builder.add_info(owners[label], "info", info)
        self._add_states(builder, found, view.labels, owners)
        for series, by_site in self._sites.of(view.sites).items():
            add_sites(builder, owners[series[0]], by_site)
        for (label, *_), counts in view.counts.items():
            add_counters(
                builder,
                owners[label],
                counts,
                has_overflow=label in view.with_overflow,
                exemplars=view.exemplars.get((label,), ()),
            )
        add_findings(builder, audit(fleet, now=time.monotonic(), wall=time.time()), owners)
        lag = event_loop.lag(
            (pool.snapshot for pool in found.pools if pool.snapshot.is_active), time.monotonic()
        )
        if lag is not None:
            builder.add((), [("event_loop_lag_seconds", {f"pid{pid}": lag} if beside else lag)])

    def _add_states(
        self,
        builder: Builder,
        found: Read,
        by_identity: dict[Identity, str],
        owners: dict[str, tuple[str, ...]],
    ) -> None:
        now, wall = time.monotonic(), time.time()
        by_store: dict[BlockStore, list[Recorder]] = {}
        for recorder in found.live:
            by_store.setdefault(recorder.store, []).append(recorder)
        shared: dict[str, set[bool | None]] = {}
        for store, recorders in by_store.items():
            are = store.share([recorder.storage.doubles for recorder in recorders])
            for recorder, is_shared in zip(recorders, are, strict=True):
                shared.setdefault(by_identity[recorder.identity], set()).add(is_shared)
        for label, are_shared in shared.items():
            if are_shared != {None}:
                builder.add((label,), [("exporter_segment_shared", float(False not in are_shared))])
        by_label: dict[str, list[WorkerPool]] = {}
        for pool in found.pools:
            if pool.snapshot.is_active:
                by_label.setdefault(by_identity[pool.identity], []).append(pool)
        for label, pools in by_label.items():
            snapshots = [pool.snapshot for pool in pools]
            add_capacity(builder, owners[label], snapshots)
            add_state(builder, owners[label], snapshots, now, wall)


def _of_totals(totals: Totals) -> WorkerPool:
    described = read(totals.text)
    return WorkerPool.of_totals(
        described, totals.counts, totals.ended, sites=totals.sites, brief=totals.brief
    )


def _is_shown(ended: float) -> bool:
    """Return whether a name is still shown whose last pool went at a Unix time."""
    return time.time() - ended <= RETENTION_SECONDS
