# SPDX-License-Identifier: Apache-2.0
"""Build queries that read recorded series of many targets, and of few the targets themselves.

A hidden variable, ``recorded``, has the jobs whose recorded series are read. It is empty where the rules are not
loaded, where instances are chosen, and where few targets are: then every query reads the targets, as if there were no
rules. Another one, ``covered``, has a value if those are all jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import VariableHide, VariableOption, VariableRefresh

from .panels import DATASOURCE
from .promql import FLEET, PROCESS, TARGET, WORKERS, pool, rate, top

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of more targets than these, recorded series are read. What a rule records is up to an evaluation older, and its rates
# are means over a longer time than those of a graph. So few targets are asked themselves.
MANY = 20
OVER = f"Of more than {MANY} targets, each point is over the 5 minutes that the rules record."
_OF_FLEET = f'{FLEET}, job=~"$job"'
_COUNT = "fleet:sqlalchemy_pool_targets:count"
_GROUP = "cluster, namespace, job"
_POOL = 'pool=~"$pool"'
_JOB, _RECORDED = 'job=~"$job"', 'job=~"$recorded"'


def _jobs(narrowing: Sequence[str]) -> str:
    """Return a query of the jobs of which recorded series are read.

    The further matchers of the name are true if all instances are chosen (``.+``), and never of an instance's name.
    Jobs of which anything was shown and not recorded, when the time range begins or ends, are not among them: where the
    rules were loaded in the middle, the targets have all of the range.
    """
    all_chosen = ", ".join(f'__name__=~"${name}"' for name in narrowing)
    chosen = f'{{__name__="{_COUNT}", {all_chosen}, {_OF_FLEET}}}'
    seen = f"last_over_time({chosen}[$__range])"
    left_out = " or ".join(
        f"(group by ({_GROUP}) (sqlalchemy_pool_exporter_build_info{{{TARGET}}}{when}) "
        f"unless on ({_GROUP}) {_COUNT}{{{_OF_FLEET}}}{when})"
        for when in ("", " offset $__range")
    )
    return f"group by (job) ({seen}) and on () (sum({seen}) > {MANY}) unless on (job) ({left_out})"


def _all_are() -> str:
    """Return a query that has a series if all that was shown of the chosen targets is recorded."""
    shown = f'{{__name__=~"sqlalchemy_pool_(exporter_build_info|instances)", {TARGET}, job!~"$recorded"}}'
    return f'label_replace(vector(1), "covered", "yes", "", "") unless on () group(last_over_time({shown}[$__range]))'


def _hidden(name: str, query: str, label: str) -> build.QueryVariable:
    """Return a variable that has the values of a label in what a query finds.

    Its All is the list of its options. If there is none, Grafana makes `()` of it, which matches an absent label alone.
    """
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(f"query_result({query})")
        .regex(f'/{label}="([^"]*)"/')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .hide(VariableHide.HIDE_VARIABLE)
    )


def variables(*narrowing: str) -> tuple[build.QueryVariable, build.QueryVariable]:
    """Return the hidden variables, ``recorded`` and ``covered``.

    No series is recorded of a part of a job: they are empty unless ``narrowing``, variables of a board, are at All.
    """
    return _hidden("recorded", _jobs(narrowing), "job"), _hidden("covered", _all_are(), "covered")


def unrecorded(expr: str) -> str:
    """Narrow every selector of an expression to the jobs of which no recorded series are read.

    If there are none, the second matcher, of a label that no series has, lets Prometheus give up at once. Of a million
    series, the first one alone takes it 40 ms for each selector, and a table has dozens.
    """
    return expr.replace(_JOB, f'{_JOB}, job!~"$recorded", __recorded__=~"$covered"')


def series(name: str, *matchers: str) -> str:
    """Select a recorded series of the jobs of which they are read."""
    return f"{name}{{{', '.join((_OF_FLEET, _RECORDED, *matchers))}}}"


def of_pools(name: str, *matchers: str) -> str:
    """Select a recorded series of the chosen pools."""
    return series(f"fleet_pool:sqlalchemy_pool_{name}", _POOL, *matchers)


def of_sites(name: str) -> str:
    """Select a recorded series of the sites of the chosen pools."""
    return series(f"fleet_pool_site:sqlalchemy_pool_{name}", _POOL)


def rates(recorded: str) -> tuple[str, str]:
    """Return the mean of a recorded rate since the last point of a graph, whose points may be hours apart.

    Where rules are evaluated less often than targets are scraped, nothing may have been recorded since: then there is
    the last value, the second query, if it is not stale.
    """
    return f"avg_over_time({recorded}[$__rate_interval])", recorded


def folded(fold: str, by: str, recorded: str | tuple[str, ...], expr: str) -> str:
    """Return an aggregation, ``sum`` or ``max``, of a recorded series and of what the other jobs' targets show.

    Of several queries of recorded series, the first that has a value is taken. By few labels, all is aggregated first,
    because ``or`` compares the labels of all that it gets: of hundreds of series it takes longer than all the rest.
    """
    over = f"{fold} by ({by})" if by else fold
    queries = (recorded,) if isinstance(recorded, str) else recorded
    rest = f"{over} ({unrecorded(expr)})"
    if "job" in by.split(", "):  # nearly as many as there are
        return f"{over} ({' or '.join((*queries, rest))})"
    first = " or ".join(f"{over} ({query})" for query in queries)
    return f'{over} (label_replace({first}, "recorded", "yes", "", "") or {rest})'


def rates_of(name: str, by: str = "") -> str:
    """Return the events a second, of all chosen pools or by labels, recorded or counted by the targets."""
    return folded("sum", by, rates(of_pools(f"{name}:rate")), rate(pool(f"{name}_total")))


def quantile(q: float, recorded: str | tuple[str, ...], expr: str, by: str = "") -> str:
    """Return a quantile of a recorded histogram's buckets and of those of the other jobs' targets."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q:g}, {folded('sum', labels, recorded, expr)})"


def largest_processes(name: str, expr: str) -> str:
    """Return the largest values of a series that is recorded for each process, and of the other jobs' processes."""
    recorded = f"{name}{{{TARGET}, {_RECORDED}, {_POOL}, {WORKERS}}}"
    return f"max by ({PROCESS}) ({top(f'{top(recorded)} or {top(unrecorded(expr))}')})"
