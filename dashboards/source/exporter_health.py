# SPDX-License-Identifier: Apache-2.0
"""The row "Maintenance" of the Overview dashboard: capacity, the processes, and the exporter itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from .panels import LONG_AGE, Query, stat, timeseries
from .promql import exporter, pool, rate, top
from .recorded import OVER, folded, of_pools, rates
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel


def maintenance(to_pool: tuple[str, str]) -> list[Builder[Panel]]:
    """Return the panels for routine checks: capacity, and the exporter itself."""
    live, gone = (exporter("exporter_workers", f'state="{state}"') for state in ("live", "gone"))
    return [
        timeseries(
            "Capacity, by pool",
            "What all processes together may open: pool_size and max_overflow of each. Good: the database can "
            "take the sum of all that use it, see the Database dashboard. Bad: it grows with each deployment.",
            Query(
                top(folded("sum", "job, pool", of_pools("capacity:sum"), pool("capacity"))),
                "{{job}} {{pool}}",
            ),
            unit=units.Short,
            span=6,
        ),
        timeseries(
            "Workers",
            "Worker processes that share a directory. Good: live is what is deployed, gone stays where it is. Bad: "
            "live falls; gone rises by a worker that died and that nobody replaced.",
            Query(f"sum({live})", "live"),
            Query(f"sum({gone})", "gone"),
            unit=units.Short,
            span=6,
        ),
        timeseries(
            "Time to collect",
            "How long the exporter took to collect a scrape, the slowest of each service. Good: milliseconds. Bad: "
            "near the scrape timeout; the next is missing.",
            Query(top(f"max by (job) ({exporter('exporter_scrape_duration_seconds')})"), "{{job}}"),
            unit=units.Seconds,
            span=6,
        ),
        timeseries(
            "What the exporter could not see",
            "Good: all at 0. Bad: files in the segments' directory that cannot be read, are of another version or are "
            "damaged; connections that found no room in the table; pools that could not be read or recorded. "
            f"{OVER}",
            Query(f"sum by (reason) ({exporter('exporter_segment_errors')})", "segment {{reason}}"),
            Query(
                folded(
                    "sum",
                    "",
                    of_pools("untracked_connections:sum"),
                    pool("untracked_connections"),
                ),
                "connections untracked",
            ),
            Query(
                folded(
                    "sum",
                    "",
                    rates(of_pools("exporter_recording_faults:rate")),
                    rate(pool("exporter_recording_faults_total")),
                ),
                "recording faults/s",
            ),
            Query(f"sum({rate(exporter('exporter_scrape_errors_total'))})", "pools not read/s"),
            unit=units.Short,
            span=6,
            is_bad=True,
        ),
        stat(
            "Configuration current",
            "Whether every sidecar works with the configuration that is in its files. Good: Yes. Bad: No; a reload "
            "failed, and one goes on with what it had.",
            f"min({exporter('exporter_config_last_reload_successful')})",
            unit=units.BoolYesNo,
            height=4,
            warning=1,
            is_good_high=True,
            empty="No sidecar is scraped",
        ),
        stat(
            "Configuration read",
            "How long ago the configuration at work was read, in the sidecar that did so longest ago. Neither good nor "
            "bad; longer ago than its last change: that sidecar has not been told to reload.",
            f"time() - min({exporter('exporter_config_last_reload_success_timestamp_seconds')})",
            unit=LONG_AGE,
            height=4,
            empty="No sidecar is scraped",
        ),
        stat(
            "Segments shared",
            "Whether each application that was given a directory for a sidecar can write there. Good: Yes. Bad: No; "
            "the sidecar does not see one of its pools. Applications scraped by themselves say it; sidecars cannot.",
            f"min({exporter('exporter_segment_shared')})",
            unit=units.BoolYesNo,
            height=4,
            warning=1,
            is_good_high=True,
            empty="No application says it",
        ),
        table(
            "Versions",
            "Which versions are at work, and in how many targets. Good: one line. Bad: an old one after a "
            "rollout; a hot path that is interpreted where it could be compiled.",
            Query(
                f"count by (version, python, sqlalchemy, hot_path) ({exporter('exporter_build_info')})",
                "Targets",
            ),
            keys=("version", "python", "sqlalchemy", "hot_path"),
            columns={"Targets": Column()},
            span=12,
            height=4,
        ),
        table(
            "Findings, by pool",
            "Common mistakes in how pools are configured or used, and in how many targets each is found. Good: empty. "
            "Bad: any: `sqlalchemy-pool-exporter audit` says why it is one, and what to do.",
            Query(f"count by (job, pool, rule) ({pool('finding')})", "Targets"),
            keys=("rule", "pool"),
            last_keys=("job",),
            columns={"Targets": Column()},
            links={"pool": to_pool},
            height=6,
        ),
    ]
