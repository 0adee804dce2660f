# SPDX-License-Identifier: Apache-2.0
"""Panels that read recorded series of a fleet: promtool evaluates them with and without, and who reads them when."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import pytest

from sqlalchemy_pool_exporter import metrics
from tests.support import grafana
from tests.support.paths import ROOT
from tests.support.promtool import answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy_pool_exporter.metrics import Metric

pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool")]
RULES = ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml"
INTERVAL = 15  # seconds between two scrapes, and between two evaluations of the rules
SCRAPES = 48
WHEN = "12m"  # longer than the window of the recorded rates
JOBS, POOLS, SITES = ("a", "b"), ("p", "q"), ("x:f:1", "y:g:2")
# The workers of each target, by job and instance: fewer than a graph shows, because of equal ones it shows any.
WORKERS = {("a", "1"): ("000", "001"), ("a", "2"): ("000",), ("b", "1"): ("000",)}
BOARDS = ("overview", "pool", "database")
COUNT = "fleet:sqlalchemy_pool_targets:count"


def _series() -> Iterator[tuple[str, str]]:
    """Yield all series of the pools of all targets; counters count at a steady pace of their own."""
    for (job, instance), workers in WORKERS.items():
        target = f'job="{job}", instance="{instance}"'
        yield f"up{{{target}}}", f"1x{SCRAPES}"
        yield f"sqlalchemy_pool_exporter_build_info{{{target}}}", f"1x{SCRAPES}"
        for key, labels, value in (
            ("pool_info", ', pool="p"', 1),
            ("pool_info", ', pool="q"', 1),
            ("max_connections", "", 100),
            ("reserved_connections", "", 3),
            ("connections", ', state="idle"', 70),
        ):
            yield f'sqlalchemy_pool_database_{key}{{{target}, database="d"{labels}}}', f"{value}x{SCRAPES}"
        for pool in POOLS:
            of_pool = f'{target}, pool="{pool}"'
            for metric in metrics.POOL_METRICS:
                yield from _of_pool(metric, of_pool, workers)
            faults = f"{metrics.PREFIX}exporter_recording_faults_total{{{of_pool}}}"
            yield faults, _counted(faults)


def _of_pool(metric: Metric, pool: str, workers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    own = (
        [f'{pool}, {metric.labels[0]}="{value}"' for value in metric.values or SITES]
        if metric.labels
        else [pool]
    )
    if metric.labels == ("layer", "disposition"):
        own = [f'{pool}, layer="{layer}", disposition="fatal"' for layer in ("pool", "ping")]
    if metric.kind == "histogram":
        for bound, share in (("0.1", 1), ("0.5", 2), ("+Inf", 3)):
            yield f'{metric.name}_bucket{{{pool}, le="{bound}"}}', _counted(pool + metric.name, share)
    for labels in own:
        if metric.kind in {"histogram", "summary"}:
            yield f"{metric.name}_sum{{{labels}}}", _counted(f"{labels}{metric.name}_sum")
            # As many as in the bucket without an end.
            yield f"{metric.name}_count{{{labels}}}", _counted(labels + metric.name, 3)
        elif metric.kind == "counter":
            yield f"{metric.name}{{{labels}}}", _counted(labels + metric.name)
        elif metric.key == "capacity":
            yield f"{metric.name}{{{labels}}}", f"{_number(labels)}x{SCRAPES}"
        else:
            for worker in workers:
                name = f'{metric.name}{{{labels}, worker="{worker}"}}'
                yield name, f"{_value(metric, name)}x{SCRAPES}"


def _number(name: str) -> int:
    return 1 + crc32(name.encode()) % 9


def _value(metric: Metric, name: str) -> int:
    """Return a value that fills some processes: they have at least as much in use as their limit."""
    return {"size": 3, "max_overflow": 0, "connections": 2 + _number(name) % 2}.get(metric.key, _number(name))


def _counted(name: str, share: int = 1) -> str:
    return f"0+{share * _number(name)}x{SCRAPES}"


SERIES = dict(_series())


class Asked(NamedTuple):
    """A query of a panel that reads recorded series, and its dashboard."""

    name: str
    title: str
    expr: str


def _asked() -> list[Asked]:
    return [
        Asked(name, str(target), target.expr)
        for name in BOARDS
        for target in grafana.targets(grafana.load(name))
        if "$recorded" in target.expr
    ]


def test_same_values(tmp_path: Path) -> None:
    """Each panel shows the same by the series that the rules record of all jobs, of one of them, and of none."""
    asked = _asked()
    found = []
    for at, (recorded, covered) in enumerate((((), ()), (("a",), ()), (JOBS, ()), (JOBS, ("yes",)))):
        exprs = [
            grafana.interpolated(
                one.expr,
                {"recorded": list(recorded), "covered": list(covered)},
                grafana.load(one.name),
                rate_interval="60s",
                span="5m",
            )
            for one in asked
        ]
        directory = tmp_path / str(at)
        directory.mkdir()
        found.append(answers(directory, exprs, SERIES, WHEN, rules=[RULES]))
    for one, live, *others in zip(asked, *found, strict=True):
        assert live, one
        for other in others:
            assert pytest.approx(live) == other, one
    # A process is full, and one is not.
    (stuck,) = [
        live for one, live in zip(asked, found[0], strict=True) if one.title == "Stuck for, by process A"
    ]
    assert 0.0 in stuck.values()
    assert max(stuck.values()) > 0


def test_no_target_is_read_twice() -> None:
    """In a query that reads recorded series, each selector is of the jobs of which they are read, or of the others."""
    for one in _asked():
        for selector in grafana.selectors(grafana.parsed(one.expr)):
            if str(selector.name).startswith(f"{metrics.PREFIX}database_"):
                continue  # every job says the same of a database
            matchers = [
                (each.name, str(each.op)) for each in selector.matchers.matchers if each.value == "$recorded"
            ]
            wanted = "MatchOp.Re" if ":" in str(selector.name) else "MatchOp.NotRe"
            assert [("job", wanted)] == matchers, one


@pytest.mark.parametrize("name", BOARDS)
def test_a_panel_of_recorded_rates_says_so(name: str) -> None:
    """A panel that reads recorded rates says over how long they are; a graph's own are over less."""
    of_rates = [
        panel
        for panel in grafana.panels(grafana.load(name))
        if any(re.search(r":rate\b", target["expr"]) for target in panel["targets"])
    ]
    silent = [
        panel["title"] for panel in of_rates if "5 minutes that the rules record" not in panel["description"]
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("when", "rate_interval"), [(WHEN, "60s"), ("12m10s", "5s")], ids=["often", "less-often-than-scraped"]
)
def test_what_is_recorded_alone_is_read(tmp_path: Path, when: str, rate_interval: str) -> None:
    """Without the targets' own series, the recorded ones have each panel's values: no selector is left beside them.

    Also where none was recorded in the interval of a graph's rates, because rules are evaluated less often.
    """
    asked = _asked()
    exprs = [
        grafana.interpolated(
            one.expr,
            {"recorded": list(JOBS), "covered": "yes"},
            grafana.load(one.name),
            rate_interval=rate_interval,
            span="5m",
        )
        for one in asked
    ]
    recorded = {f"{name}{labels}": value for name, labels, value in _recorded(tmp_path)}
    kept = {name: values for name, values in SERIES.items() if name.startswith("sqlalchemy_pool_database")}
    alone = answers(tmp_path, exprs, {**kept, **recorded}, when)
    for one, values in zip(asked, alone, strict=True):
        assert values, one


def _recorded(directory: Path) -> Iterator[tuple[str, str, str]]:
    names = sorted({name for one in _asked() for name in _recorded_names(one.expr)})
    for name, found in zip(names, answers(directory, names, SERIES, WHEN, rules=[RULES]), strict=True):
        for labels, value in found.items():
            yield name, labels, f"{value}x{SCRAPES}"


def _recorded_names(expr: str) -> set[str]:
    return {str(one.name) for one in grafana.selectors(grafana.parsed(expr)) if ":" in str(one.name)}


TARGETS = 30
UP = {
    f'{name}{{job="{job}", instance="{at}"}}': "1x80"
    for name in ("up", "sqlalchemy_pool_exporter_build_info")
    for job in JOBS
    for at in range(TARGETS // 2)
}
RECORDED = {f'{COUNT}{{job="{job}"}}': f"{TARGETS // 2}x80" for job in JOBS}


def _recorded_jobs(
    directory: Path, series: Mapping[str, str], **chosen: str | list[str]
) -> tuple[list[str], bool]:
    """Return the jobs of which recorded series are read after 15 minutes, in a range of five; whether those are all."""
    board = grafana.load("overview")

    def ask(expr: str) -> list[dict[str, str]]:
        (found,) = answers(directory, [expr], series, "15m")
        return [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in found]

    options = grafana.with_options(board, chosen, ask, rate_interval="60s", span="5m")
    return list(options["recorded"]), bool(options["covered"])


def test_all_of_many(tmp_path: Path) -> None:
    """Of many targets, all of them chosen or all jobs one by one, the recorded series are read, and nothing else."""
    assert (["a", "b"], True) == _recorded_jobs(tmp_path, {**UP, **RECORDED})
    assert (["a", "b"], True) == _recorded_jobs(tmp_path, {**UP, **RECORDED}, job=["a", "b"])


def test_few(tmp_path: Path) -> None:
    """Few targets are asked themselves: a job of 15 is, where both are recorded."""
    assert ([], False) == _recorded_jobs(tmp_path, {**UP, **RECORDED}, job="a")


def test_instances(tmp_path: Path) -> None:
    """Where instances are chosen, they are asked themselves."""
    assert ([], False) == _recorded_jobs(tmp_path, {**UP, **RECORDED}, instance="1")


def test_no_rules(tmp_path: Path) -> None:
    """Without the rules all targets are asked."""
    assert ([], False) == _recorded_jobs(tmp_path, UP)


@pytest.mark.parametrize(
    "values", ["_x50 15x30", "15x50 stale _x30"], ids=["loaded in the middle", "removed in the middle"]
)
def test_a_part_of_the_time(tmp_path: Path, values: str) -> None:
    """A job that is recorded in a part of the time range alone is asked itself, and the other one is not."""
    series = {**UP, **RECORDED, f'{COUNT}{{job="a"}}': values}
    assert (["b"], False) == _recorded_jobs(tmp_path, series)


def test_a_part_of_the_targets(tmp_path: Path) -> None:
    """A job of which one cluster has no rules is asked itself."""
    other = {'sqlalchemy_pool_exporter_build_info{job="a", instance="x", cluster="west"}': "1x80"}
    assert (["b"], False) == _recorded_jobs(tmp_path, {**UP, **RECORDED, **other})


@pytest.mark.parametrize(
    "name", ["sqlalchemy_pool_exporter_build_info", "sqlalchemy_pool_instances"], ids=["scraped", "pushed"]
)
def test_a_job_that_no_rule_counts(tmp_path: Path, name: str) -> None:
    """A job that is not recorded is asked itself, also if it came and went within the time range."""
    other = {f'{name}{{job="c", instance="x", pool="p"}}': "_x47 1x6 stale"}
    assert (["a", "b"], False) == _recorded_jobs(tmp_path, {**UP, **RECORDED, **other})


def test_lost(tmp_path: Path) -> None:
    """A job whose targets are all lost, and with them what is recorded, is read as it was recorded until then."""
    lost = {name: "1x50 stale" for name in UP if 'job="a"' in name}
    series = {**UP, **lost, **RECORDED, f'{COUNT}{{job="a"}}': "15x50 stale"}
    assert (["a", "b"], True) == _recorded_jobs(tmp_path, series)
