# SPDX-License-Identifier: Apache-2.0
"""What pools show, for every collector of this project: from snapshots and sums to the values of metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from .segment import sites
from .segment.exemplars import by_histogram
from .segment.snapshot import counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .audit.rules import Found
    from .builder_cy import Builder, Owner
    from .segment.exemplars import Exemplars
    from .segment.snapshot import Counts, Value

FAULTS_TOTAL: Final = "exporter_recording_faults_total"


def add_counters(  # noqa: PLR0913 - keyword-only options
    scrape: Builder,
    owner: Owner,
    counts: Counts,
    *,
    has_overflow: bool,
    exemplars: Exemplars = (),
    with_faults: bool = True,
) -> None:
    """Add the counters and histograms of the pools of one name."""

    def make() -> tuple[dict[str, Value], None]:
        values = dict(counters(counts, has_overflow=has_overflow))
        if not with_faults:
            del values[FAULTS_TOTAL]
        for key, some in by_histogram(exemplars).items():
            histogram: Any = values[key]
            values[key] = replace(histogram, exemplars=some)
        return values, None

    scrape.add_derived(owner, "counters", [has_overflow, exemplars, *counts], make)


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
