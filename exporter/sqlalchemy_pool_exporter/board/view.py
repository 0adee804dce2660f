# SPDX-License-Identifier: Apache-2.0
"""Builds the board from what was read of all processes."""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.audit.rules import audit
from sqlalchemy_pool_exporter.held_connections import held_connections, servers_by_label
from sqlalchemy_pool_exporter.pausing import pause
from sqlalchemy_pool_exporter.segment import event_loop, sums
from sqlalchemy_pool_exporter.segment.block import CHECKOUT_TIMEOUTS, FIRST_COUNTER, WAIT, WAIT_FAILED
from sqlalchemy_pool_exporter.segment.entries import CHECKOUTS, HELD_SECONDS, HOLDS, NESTED

from .conditions import conditions, rank
from .loops import blocked_loops
from .parts import joined_state, limits_of, parts_of, state_of
from .query import Query
from .rates import counters_of
from .schema import VERSION
from .words import counted

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from sqlalchemy_pool_exporter.held_connections import Blocker as KnownBlocker
    from sqlalchemy_pool_exporter.held_connections import HeldConnection, ProbedServer
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.facts import Process
    from sqlalchemy_pool_exporter.segment.snapshot import Counts

    from .moment import Moment
    from .parts import Part
    from .schema import Blocker, Board, Condition, Finding, Held, Pool, Rates, Site, Totals, Worker


MOST_CONDITIONS: Final = 200
MOST_FINDINGS: Final = 1000
MOST_SITES: Final = 20  # of a pool


def board(
    moment: Moment,
    query: Query = Query(),  # noqa: B008 - it is immutable
) -> Board:
    """Return what is asked for of a moment.

    Args:
        moment: what was read.
        query: which pools, and how many of each thing.
    """
    fleet = moment.fleet
    found = [] if fleet is None else [*_pools(fleet, moment)]
    found.sort(key=lambda one: one.order)
    chosen = [one for one in found if one.is_asked_for(query)]
    shown = chosen[: query.pools]
    every = sorted((one for pool in chosen for one in pool.conditions), key=lambda one: rank(one["severity"]))
    every = [*_of_all(fleet, moment.now), *every]
    findings = _findings(moment, {pool.label for pool in chosen})
    held, held_left_out = _held(shown, query.held, moment)
    return {
        "version": VERSION,
        "exporter": package_version(),
        "time": round(moment.wall, 3),
        "note": moment.note,
        "processes": {
            "live": 0 if fleet is None else len(fleet.live),
            "parent": 0 if fleet is None else len(fleet.running) - len(fleet.live),
            "gone": 0 if fleet is None else len(fleet.workers) - len(fleet.running),
        },
        "unreadable": {} if fleet is None else {kind: count for kind, count in fleet.errors.items() if count},
        "totals": _totals(found),
        "conditions": every[:MOST_CONDITIONS],
        "conditions_left_out": len(every[MOST_CONDITIONS:]),
        "findings": findings[:MOST_FINDINGS],
        "findings_left_out": len(findings[MOST_FINDINGS:]),
        "pools_unprobed": sum(pool.is_unprobed for pool in chosen),
        "pools": [pool.written(query, moment) for pool in shown],
        "pools_left_out": len(chosen) - len(shown),
        "held": held,
        "held_left_out": held_left_out,
    }


def _findings(moment: Moment, pools: Container[str]) -> list[Finding]:
    if moment.fleet is None:
        return []
    found = [
        one
        for one in audit(moment.fleet, moment.servers, now=moment.now, wall=moment.wall)
        if one.pool in pools
    ]
    found.sort(key=lambda one: (rank(one.rule.severity), one.pool))
    return [
        {
            "rule": one.rule.name,
            "severity": one.rule.severity,
            "pool": one.pool,
            "text": one.text,
            "remedy": one.rule.remedy.replace("`", ""),
        }
        for one in found
    ]


def _pools(fleet: Fleet, moment: Moment) -> Iterator[_Pool]:
    records: dict[str, list[HeldConnection]] = {}
    servers: dict[str, ProbedServer] = {}
    if moment.servers:  # without, all that the records say is in the parts
        servers = servers_by_label(fleet, moment.servers)
        for one in held_connections(fleet, now=moment.now, servers=moment.servers):
            records.setdefault(one.pool, []).append(one)
    for label, parts in parts_of(fleet, now=moment.now, wall=moment.wall).items():
        pause()
        yield _Pool(label, parts, fleet, moment, records=records.get(label, []), server=servers.get(label))


class _Pool:
    """One pool, before it is known whether it is shown."""

    def __init__(  # noqa: PLR0913 - all that is known of a pool
        self,
        label: str,
        parts: list[Part],
        fleet: Fleet,
        moment: Moment,
        *,
        records: Sequence[HeldConnection],
        server: ProbedServer | None,
    ) -> None:
        self.label, self.parts, self._fleet = label, parts, fleet
        self._server = server
        self.state = state_of(parts)
        self.rates: Rates | None = moment.rates.get(label)
        self.conditions = conditions(label, parts, moment, records, server)
        self.severity = self.conditions[0]["severity"] if self.conditions else None

    @property
    def is_unprobed(self) -> bool:
        """Whether the pool has a database server and no probe told of it now."""
        infos = self._fleet.infos.get(self.label, [])
        has_server = bool(self.parts) and any(info.get("dialect") != "sqlite" for info in infos)
        return has_server and (self._server is None or self._server.limits is None)

    @property
    def order(self) -> tuple[object, ...]:
        """A key that puts the worst first: severity, waiting callers, share in use; the last are pools of nobody."""
        busiest = max((_fill(part) for part in self.parts), default=0.0)
        state = self.state
        return rank(self.severity), -state["waiting"], not self.parts, -busiest, -state["in_use"], self.label

    def is_asked_for(self, query: Query) -> bool:
        """Whether the query is for this pool."""
        if query.names and self.label not in query.names:
            return False
        text = query.text.casefold()
        return not text or any(text in one.casefold() for one in self._texts())

    def _texts(self) -> Iterator[str]:
        yield self.label
        for part in self.parts:
            if (process := part.process) is not None:
                yield f"{process.program} {process.pid}"
        yield from self._by_site

    @property
    def _by_site(self) -> Mapping[str, Counts]:
        return self._fleet.view.sites.get((self.label,), {})

    def written(self, query: Query, moment: Moment) -> Pool:
        """Return the pool as it is answered."""
        pause()
        parts = sorted(
            self.parts, key=lambda part: (-part.state["waiting"], -_fill(part), part.worker.number)
        )
        counts = self._fleet.counts[self.label,]
        nested = sum(site[NESTED] for site in self._by_site.values())
        snapshots = [snapshot for part in parts for snapshot in part.snapshots]
        return {
            "name": self.label,
            "severity": self.severity,
            "info": self._fleet.infos.get(self.label, []),
            "instances": len(sums.current(snapshots)),
            "limits": limits_of(parts),
            "state": self.state,
            "counters": counters_of(counts, nested),
            "rates": self.rates,
            "conditions": self.conditions,
            "workers": [_worker(part, moment.now) for part in parts[: query.workers]],
            "workers_left_out": len(parts[query.workers :]),
            "sites": self._sites(moment.now),
        }

    def _sites(self, now: float) -> list[Site]:
        number: Counter[str] = Counter()
        since: dict[str, float] = {}
        for part in self.parts:
            for one in part.held():
                number[one.site] += 1
                since[one.site] = min(one.since, since.get(one.site, one.since))
        by_site = self._by_site
        used = {site for site, counts in by_site.items() if counts[CHECKOUTS]} | number.keys()

        def order(site: str) -> tuple[object, ...]:
            return -number[site], -(by_site[site][CHECKOUTS] if site in by_site else 0.0), site

        return [
            {
                "site": site,
                "held": number[site],
                "longest_held_seconds": max(0.0, now - since[site]) if site in since else 0.0,
                "checkouts": by_site[site][CHECKOUTS] if site in by_site else 0.0,
                "holds": by_site[site][HOLDS] if site in by_site else 0.0,
                "hold_seconds": by_site[site][HELD_SECONDS] if site in by_site else 0.0,
                "nested_checkouts": by_site[site][NESTED] if site in by_site else 0.0,
            }
            for site in nsmallest(MOST_SITES, used, key=order)
        ]


def _fill(part: Part) -> float:
    """Return which share of its connections a part has in use."""
    capacity = part.limits["capacity"]
    return part.state["in_use"] / capacity if capacity else 0.0


def _worker(part: Part, now: float) -> Worker:
    process = part.process
    counts = [snapshot.counts for snapshot in part.snapshots]
    return {
        "worker": part.worker.number,
        "pid": None if process is None else process.pid,
        "program": None if process is None else process.program or None,
        "started": None if process is None else process.started or None,
        "limits": part.limits,
        "state": part.state,
        "self_deadlocked": bool(part.state["waiting"]) and part.is_deadlocked,
        "event_loop_lag_seconds": event_loop.lag(part.snapshots, now),
        "checkouts": sum(map(_checkouts, counts)),
        "checkout_timeouts": sum(one[CHECKOUT_TIMEOUTS - FIRST_COUNTER] for one in counts),
    }


def _checkouts(counts: Counts) -> float:
    # The bucket counts of WAIT; its sum of seconds comes after them.
    return sum(counts[WAIT - FIRST_COUNTER : WAIT_FAILED - FIRST_COUNTER - 1])


def _held(pools: Sequence[_Pool], most: int, moment: Moment) -> tuple[list[Held], int]:
    """Return those that are held longest, and how many others there are."""
    if moment.fleet is None:
        return [], 0
    labels = {pool.label for pool in pools}
    oldest = held_connections(moment.fleet, now=moment.now, servers=moment.servers, pools=labels, most=most)
    number = sum(part.held_number for pool in pools for part in pool.parts)
    programs = {worker.number: worker.facts.process for worker in moment.fleet.live}
    return [_holding(one, programs[one.worker], moment) for one in oldest], number - len(oldest)


def _holding(one: HeldConnection, process: Process | None, moment: Moment) -> Held:
    return {
        "pool": one.pool,
        "worker": one.worker,
        "pid": one.pid or None,
        "program": None if process is None else process.program or None,
        "site": one.site,
        "holder": one.holder or None,
        "label": one.label or None,
        "since": round(moment.wall - one.held_seconds, 3),
        "held_seconds": one.held_seconds,
        "waits_seconds": one.waits_seconds,
        "server_pid": one.server_pid or None,
        "server": None
        if one.asked_seconds_ago is None
        else {
            "state": one.server_state,
            "wait_event": one.wait_event or None,
            "state_seconds": one.state_seconds,
            "transaction_seconds": one.transaction_seconds,
            "statement_seconds": one.statement_seconds,
            "statement": one.statement or None,
            "blocked_by": [_blocker(blocker) for blocker in one.blocked_by],
            "asked_seconds_ago": one.asked_seconds_ago,
        },
    }


def _blocker(one: KnownBlocker) -> Blocker:
    return {
        "server_pid": one.server_pid,
        "state": one.state,
        "application": one.application or None,
        "pool": one.pool or None,
        "worker": one.worker or None,
        "pid": one.pid or None,
        "site": one.site or None,
    }


def _of_all(fleet: Fleet | None, now: float) -> Iterator[Condition]:
    """Yield what is wrong and concerns no single pool."""
    if fleet is None:
        return
    yield from blocked_loops(fleet, now)
    unreadable = {kind: count for kind, count in fleet.errors.items() if count}
    if unreadable:
        files = counted(sum(unreadable.values()), "file")
        reasons = ", ".join(f"{count} {kind}" for kind, count in unreadable.items())
        text = (
            f"unreadable: {files} of processes cannot be read and the pools in them are not shown ({reasons})"
        )
        yield {"kind": "unreadable", "severity": "warning", "pool": None, "text": text}
    if not fleet.live and fleet.labels:
        text = "no process: none of the processes whose pools were recorded is alive"
        yield {"kind": "no_process", "severity": "warning", "pool": None, "text": text}


def _totals(pools: Sequence[_Pool]) -> Totals:
    states = [pool.state for pool in pools]
    state = joined_state(states) if states else state_of(())
    severities = Counter(pool.severity for pool in pools)
    return {
        "pools": len(pools),
        "critical": severities["critical"],
        "warning": severities["warning"],
        "in_use": state["in_use"],
        "idle": state["idle"],
        "waiting": state["waiting"],
        "longest_wait_seconds": state["longest_wait_seconds"],
        "longest_held_seconds": state["longest_held_seconds"],
    }
