# SPDX-License-Identifier: Apache-2.0
"""What pools show, for every collector of this project: from snapshots and sums to the values of metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .metrics import STATES
from .segment import sites, sums
from .segment.snapshot import counters
from .segment.state_cy import KEYS, age

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .audit.rules import Found
    from .builder_cy import Builder, Owner
    from .segment.snapshot import Counts, Snapshot, Value

# The metric of the last two numbers of a row (see ``state_cy``), and the values of its label.
CONNECTIONS: Final = ("connections", STATES)
FAULTS_TOTAL: Final = "exporter_recording_faults_total"


def add_capacity(scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot]) -> None:
    """Add what is always summed: the number of connections that all pools of a name together can open."""
    capacity = sums.capacity(snapshots)
    if not math.isnan(capacity):
        scrape.add(owner, [("capacity", capacity)])


def add_state(
    scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot], *, now: float, wall: float
) -> None:
    """Add the limits and the state of live pools of one name."""
    scrape.add_numbers(owner, KEYS, sums.numbers(snapshots, now=now, wall=wall), labelled=CONNECTIONS)
    at_sites = sites.held_at(snapshots)
    if at_sites is not None:
        held: Value = {site: number for site, (number, _) in at_sites.items()}
        longest: Value = {site: age(since, now) for site, (_, since) in at_sites.items()}
        scrape.add(owner, [("held_connections", held), ("site_longest_held_seconds", longest)])


def add_counters(
    scrape: Builder, owner: Owner, counts: Counts, *, has_overflow: bool, with_faults: bool = True
) -> None:
    """Add the counters and histograms of the pools of one name."""
    scrape.add_derived(
        owner,
        "counters",
        [has_overflow, *counts],
        lambda: (
            {
                key: value
                for key, value in counters(counts, has_overflow=has_overflow)
                if with_faults or key != FAULTS_TOTAL
            },
            None,
        ),
    )


def add_findings(
    scrape: Builder, findings: Iterable[Found], owners: Mapping[str, Owner] | None = None
) -> None:
    """Add what the audit found.

    Args:
        scrape: the builder.
        findings: of the audit.
        owners: label values by the label of the pool, where these are more than that.
    """
    by_pool: dict[str, dict[str, float]] = {}
    for found in findings:
        by_pool.setdefault(found.pool, {})[found.rule.name] = 1.0
    for pool, rules in by_pool.items():
        scrape.add((pool,) if owners is None else owners[pool], [("finding", rules)])


def add_sites(scrape: Builder, owner: Owner, by_site: Mapping[str, Counts]) -> None:
    """Add the counters of the sites of the pools of one name."""
    source = {site: list(counts) for site, counts in by_site.items()}
    scrape.add_derived(owner, "sites", source, lambda: (sites.counters(by_site), None))
