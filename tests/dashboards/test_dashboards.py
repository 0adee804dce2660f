# SPDX-License-Identifier: Apache-2.0
"""The dashboard files: up to date with their generator, clean by the linter's rules, consistent with the catalogue."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser as promql
import pytest
import yaml

from dashboards.source import generate
from sqlalchemy_pool_exporter import bundled
from sqlalchemy_pool_exporter.cli import main
from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    DATABASE_METRICS,
    EXPORTER_METRICS,
    FLEET_METRICS,
    OTLP_METRICS,
    POOL_METRICS,
    PREFIX,
    PROBED_POOL_METRICS,
    PROCESS_METRICS,
    RELOAD_METRICS,
    Metric,
)
from tests.support import grafana
from tests.support.linter import RULES
from tests.support.paths import ROOT
from tests.support.sidecar import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.grafana import Board, Expr

pytestmark = pytest.mark.newest
ALL = (
    *POOL_METRICS,
    *EXPORTER_METRICS,
    *PROCESS_METRICS,
    *APPLICATION_METRICS,
    *FLEET_METRICS,
    *RELOAD_METRICS,
    *OTLP_METRICS,
    *DATABASE_METRICS,
    *PROBED_POOL_METRICS,
)
METRICS = {metric.name: metric for metric in ALL}
# What the names of the series of a kind add to the metric's name.
_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
# Metrics that no dashboard shows and no rule uses, each with the reason.
EXCUSED: dict[str, str] = {
    "sqlalchemy_pool_exporter_otlp_pushes_total": "who gets pushes sees that none come; for who scrapes as well",
    "sqlalchemy_pool_exporter_otlp_last_success_timestamp_seconds": "as above",
    "sqlalchemy_pool_exporter_forked_processes": "for an application without a directory; a warning says the same",
}

TIERS = ["Health", "Problems", "Performance", "Maintenance"]
ROWS = {
    "overview": TIERS,
    "pool": ["Health", "Who holds it", "Problems", "Performance", "Maintenance"],
    "database": TIERS,
    "fleet": TIERS[:3],
}
GRAFANA_10 = {"stat", "table", "timeseries", "heatmap"}  # panel types of Grafana 10 that we use
COMMON = ("datasource", "cluster", "namespace", "job", "instance")
HIDDEN = ("recorded", "covered")  # variables that Grafana does not show
MAY_BE_ABSENT = {"cluster", "namespace", "worker"}
VARIABLES = {
    "overview": [*COMMON, *HIDDEN, "pool"],
    "pool": [*COMMON, "pool", "worker", *HIDDEN],
    "database": [*COMMON, *HIDDEN, "database"],
    # Recorded series have no instance.
    "fleet": [*(name for name in COMMON if name != "instance"), "pool"],
}
# Rules that a dashboard cannot keep, each with the reason.
EXCLUDED = {
    ("template-instance-rule", "fleet"): "recorded series of a fleet have no instance",
    ("target-instance-rule", "fleet"): "recorded series of a fleet have no instance",
}

RECORDED = {
    rule["record"]: rule["expr"]
    for group in yaml.safe_load(
        (ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml").read_text("utf-8")
    )["groups"]
    for rule in group["rules"]
    if "record" in rule
}

every_board = pytest.mark.parametrize("name", grafana.NAMES)


@every_board
def test_committed_file_is_what_the_generator_writes(name: str) -> None:
    """Each committed file equals the output of ``python -m dashboards.source.generate``."""
    assert generate.text(name) == (grafana.DIRECTORY / f"{name}.json").read_text("utf-8")


def test_bundled_files_are_the_repositorys() -> None:
    """The installed package has exactly the repository's dashboards."""
    assert {
        f"{name}.json": (grafana.DIRECTORY / f"{name}.json").read_text("utf-8")
        for name in sorted(grafana.NAMES)
    } == bundled.texts("dashboards")


@every_board
@pytest.mark.parametrize("rule", RULES)
def test_linter(rule: str, name: str) -> None:
    """Each rule of grafana/dashboard-linter holds, except for those of the instance where there is none."""
    assert ((rule, name) in EXCLUDED) == bool(list(RULES[rule](grafana.load(name))))


def _first(board: Board, kind: str) -> dict[str, Any]:
    return next(panel for panel in grafana.panels(board) if panel["type"] == kind)


def _variable(board: Board, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in board["templating"]["list"] if one["name"] == name)
    return found


def _expr(expr: str) -> Callable[[Board], None]:
    return lambda board: _first(board, "timeseries")["targets"][0].update(expr=expr)


def _set(variable: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _variable(board, variable).update(changes)


def _panel(kind: str, /, **changes: Any) -> Callable[[Board], None]:
    return lambda board: _first(board, kind).update(changes)


def _remove(name: str) -> Callable[[Board], None]:
    return lambda board: board["templating"]["list"].remove(_variable(board, name))


GOOD = 'job=~"$job", instance=~"$instance"'
# Changes that break each rule; they prove that the rule can fail.
BREAKS: list[tuple[str, Callable[[Board], Any]]] = [
    ("template-datasource-rule", _set("datasource", name="prometheus")),
    ("template-datasource-rule", _set("datasource", label="Prometheus")),
    ("template-datasource-rule", _remove("datasource")),
    (
        "template-datasource-rule",
        lambda board: board["templating"]["list"].append({**_variable(board, "datasource")}),
    ),
    ("template-job-rule", _remove("job")),
    ("template-job-rule", _set("job", multi=False)),
    ("template-job-rule", _set("job", label="job")),
    ("template-job-rule", _set("job", type="custom")),
    ("template-job-rule", _set("job", datasource={"uid": "abc"})),
    ("template-instance-rule", _remove("instance")),
    ("template-instance-rule", _set("instance", allValue=".*")),
    ("template-label-promql-rule", _set("pool", query="label_values(up{, pool)")),
    ("template-label-promql-rule", _set("pool", query="labels(up, pool)")),
    ("template-on-time-change-reload-rule", _set("pool", refresh=1)),
    ("panel-datasource-rule", _panel("stat", datasource={"type": "prometheus", "uid": "abc"})),
    (
        "panel-datasource-rule",
        lambda board: _first(board, "table")["targets"][0].update(datasource={"uid": "abc"}),
    ),
    ("panel-title-description-rule", _panel("heatmap", title="")),
    ("panel-title-description-rule", _panel("heatmap", description=" ")),
    ("panel-units-rule", lambda board: _first(board, "stat")["fieldConfig"]["defaults"].pop("unit")),
    (
        "panel-units-rule",
        lambda board: _first(board, "stat")["fieldConfig"]["defaults"].update(unit="seconds"),
    ),
    (
        "panel-units-rule",
        lambda board: _first(board, "table")["fieldConfig"]["overrides"].append(
            {"matcher": {"id": "byName", "options": "x"}, "properties": [{"id": "unit", "value": "furlongs"}]}
        ),
    ),
    ("panel-no-targets-rule", _panel("stat", targets=[])),
    ("target-logql-rule", _panel("stat", datasource={"type": "loki", "uid": "${datasource}"})),
    ("target-logql-auto-rule", _expr('count_over_time({job="a"}[$__auto])')),
    ("target-promql-rule", _expr("sum(")),
    ("target-promql-rule", _expr("")),
    ("target-rate-interval-rule", _expr(f"rate(a_total{{{GOOD}}}[5m])")),
    ("target-rate-interval-rule", _expr(f"increase(a_total{{{GOOD}}}[$__range])")),
    ("target-rate-interval-rule", _expr(f"max_over_time(rate(a_total{{{GOOD}}}[$__rate_interval])[1h:])")),
    ("target-job-rule", _expr('a{instance=~"$instance"}')),
    ("target-job-rule", _expr('a{job="$job", instance=~"$instance"}')),
    ("target-job-rule", _expr(f"a{{{GOOD}}} / on (job) b")),
    ("target-instance-rule", _expr('a{job=~"$job"}')),
    ("target-instance-rule", _expr('a{job=~"$job", instance=~"$job"}')),
    ("target-counter-agg-rule", _expr(f"sum(a_total{{{GOOD}}})")),
    ("target-counter-agg-rule", _expr(f"max_over_time(a_total{{{GOOD}}}[$__rate_interval])")),
    ("uneditable-dashboard", lambda board: board.update(editable=True)),
    ("uneditable-dashboard", lambda board: board.pop("editable")),
]


@pytest.mark.parametrize(("rule", "spoil"), BREAKS, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BREAKS)])
def test_linter_can_fail(rule: str, spoil: Callable[[Board], Any]) -> None:
    """Each rule reports a dashboard that breaks it."""
    board = grafana.load("pool")
    spoil(board)
    assert list(RULES[rule](board))


def test_every_rule_is_proven() -> None:
    """Each rule has a change that breaks it."""
    assert {rule for rule, _ in BREAKS} == set(RULES)


@every_board
def test_identity(name: str) -> None:
    """The uid is stable, because links and bookmarks contain it; Grafana 10 knows the schema and the panel types."""
    board = grafana.load(name)
    assert f"sqlalchemy-pool-{name}" == board["uid"]
    assert 36 <= board["schemaVersion"] <= 38  # schemas of Grafana 9 and 10; newer releases migrate them
    assert GRAFANA_10 >= {panel["type"] for panel in grafana.panels(board)}
    assert not {"apiVersion", "kind", "spec", "__inputs", "__requires"} & board.keys()
    assert "id" not in board


@every_board
def test_numbers(name: str) -> None:
    """Panel ids are unique, and so are the refIds of a panel's queries."""
    board = grafana.load(name)
    numbers = [panel["id"] for panel in board["panels"]]
    assert sorted(set(numbers)) == numbers
    for panel in grafana.panels(board):
        refs = [target["refId"] for target in panel["targets"]]
        assert sorted(set(refs)) == refs


@every_board
def test_layout(name: str) -> None:
    """Row titles are the tiers in order; panels do not overlap, stay within 24 columns, and fill each line."""
    board = grafana.load(name)
    assert ROWS[name] == [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    boxes = [panel["gridPos"] for panel in board["panels"]]
    for box in boxes:
        assert 0 <= box["x"] < box["x"] + box["w"] <= 24
    for one, other in combinations(boxes, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)
    for y in {box["y"] for box in boxes}:
        assert 24 == sum(box["w"] for box in boxes if box["y"] == y), y


@every_board
def test_titles_are_unique_and_descriptions_say_what_is_good_and_bad(name: str) -> None:
    """Panel titles are unique, and each description says what is good and what is bad."""
    found = grafana.panels(grafana.load(name))
    assert len(found) == len({panel["title"] for panel in found})
    for panel in found:
        assert re.search(r"Good: .*Bad: |Neither good nor bad", panel["description"]), panel["title"]


@every_board
def test_variables(name: str) -> None:
    """The queries use exactly the variables; All matches series without a label that not all have."""
    board = grafana.load(name)
    assert VARIABLES[name] == [one["name"] for one in board["templating"]["list"]]
    for one in grafana.variables(board):
        assert (True, True) == (one["multi"], one["includeAll"])
        assert grafana.is_hidden(one) == (one["name"] in HIDDEN) == one.get("skipUrlSync", False)
        expected = None if grafana.is_hidden(one) else ".*" if one["name"] in MAY_BE_ABSENT else ".+"
        assert expected == one.get("allValue")
    used = {
        found
        for target in grafana.targets(board)
        for found in re.findall(r"\$(\w+)", target.expr)
        if not found.startswith("__")
    }
    assert set(VARIABLES[name]) - {"datasource"} == used


@every_board
def test_annotations_and_links(name: str) -> None:
    """An annotation marks firing alerts, with or without a job; links keep the variables and the time range."""
    board = grafana.load(name)
    (annotation,) = board["annotations"]["list"]
    assert (True, "${datasource}") == (annotation["enable"], annotation["datasource"]["uid"])
    (selector,) = grafana.selectors(grafana.parsed(annotation["expr"]))
    matchers = {one.name: one.value for one in selector.matchers.matchers}
    assert {
        "alertname": "SQLAlchemyPool.+",
        "alertstate": "firing",
        "job": "$job|",
        **({} if name == "fleet" else {"instance": "$instance|"}),
        "cluster": "$cluster",
        "namespace": "$namespace",
    } == matchers
    (link,) = board["links"]
    assert ("dashboards", board["tags"], True, True) == (
        link["type"],
        link["tags"],
        link["includeVars"],
        link["keepTime"],
    )


@every_board
def test_pg_monitor_is_advised_to_a_role_that_lacks_it(name: str) -> None:
    """A description advises to grant ``pg_monitor`` only under the condition that the probe's role lacks it."""
    for panel in grafana.panels(grafana.load(name)):
        if "pg_monitor" in panel["description"]:
            assert "role lacks pg_monitor" in panel["description"], panel["title"]


def test_drill_down() -> None:
    """In the overview, a pool's name links to the pool dashboard, and an alert's name to its runbook."""
    overview, pool = grafana.load("overview"), grafana.load("pool")
    links = {
        override["matcher"]["options"]: one["value"][0]["url"]
        for panel in grafana.panels(overview)
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == "links"
    }
    assert links.keys() == {"pool", "alertname"}
    path, _, arguments = links["pool"].partition("?")
    assert f"/d/{pool['uid']}" == path
    assert {
        "var-job=${__data.fields.job}",
        "var-pool=${__data.fields.pool}",
        "${datasource:queryparam}",
        "${cluster:queryparam}",
        "${namespace:queryparam}",
        "${instance:queryparam}",
        "${__url_time_range}",
    } == set(arguments.split("&"))
    assert links["alertname"].endswith("/docs/runbooks/${__value.raw}.md")


def _metric(name: str) -> Metric | None:
    for suffix in ("", *_SUFFIXES["histogram"]):
        metric = METRICS.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if metric is not None and suffix in _SUFFIXES.get(metric.kind, ("",)):
            return metric
    return None


def _labels(name: str) -> set[str]:
    """Return the labels of the series with this name."""
    # Prometheus' configuration can give every series the labels of a fleet.
    fleet = {"cluster", "namespace", "job", "instance"}
    if name == "up":
        return fleet
    if name == "ALERTS":
        return {*fleet, "pool", "database", "worker", "alertname", "alertstate", "severity"}
    if ":" in name:
        by = re.match(r"\w+ by \(([^)]+)\)", RECORDED[name])
        # A rule keeps what it aggregates by, or all labels: the first part of its name says which.
        return set(by[1].split(", ")) if by else {*fleet, *name.partition(":")[0].split("_")}
    metric = _metric(name)
    assert metric is not None, f"no metric of the catalogue is called {name!r}"
    labels = {*fleet, *metric.labels}
    if metric in DATABASE_METRICS:
        labels.add("database")
    if metric in POOL_METRICS:
        labels.add("pool")
        # The sidecar adds the label to its gauges, except for the capacity, which it sums over workers.
        if metric.kind == "gauge" and metric.key != "capacity":
            labels.add("worker")
    if metric in PROBED_POOL_METRICS:
        labels.add("pool")
    if name.endswith("_bucket"):
        labels.add("le")
    return labels


def _name(selector: Expr) -> str:
    """Return the name of a selector, also where it is a matcher among others; of several names, the first."""
    name = selector.name or next(one.value for one in selector.matchers.matchers if one.name == "__name__")
    return re.sub(r"\((\w+)\|.*\)", r"\1", str(name))


def _used(node: Expr) -> list[str]:
    modifier = getattr(node, "modifier", None)
    if modifier is None:
        return []
    if isinstance(node, promql.AggregateExpr):
        return list(modifier.labels)
    return list(modifier.matching.labels) if modifier.matching is not None else []


@every_board
def test_metrics_and_labels_exist(name: str) -> None:
    """Queries use only metrics of the catalogue, and labels and label values that these have."""
    board = grafana.load(name)
    exprs = [target.expr for target in grafana.targets(board)]
    for one in grafana.variables(board):
        exprs.append(grafana.variable_query(one["query"]))
        if not grafana.is_hidden(one):
            asked, label = grafana.variable_selector(one["query"])
            assert label in _labels(str(grafana.parsed(asked).name))
    for expr in exprs:
        for node, _ in grafana.walk(grafana.parsed(expr)):
            below = set[str]().union(*(_labels(_name(one)) for one in grafana.selectors(node)))
            assert below >= set(_used(node)), (expr, str(node))
        for selector in grafana.selectors(grafana.parsed(expr)):
            metric = _metric(_name(selector))
            for matcher in selector.matchers.matchers:
                assert matcher.name in {"__name__", "__recorded__", *_labels(_name(selector))}, (
                    expr,
                    matcher.name,
                )
                if metric and metric.values and metric.labels[0] == matcher.name:
                    assert any(re.fullmatch(matcher.value, value) for value in metric.values), expr


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        (f"{PREFIX}checkouts_total", True),
        (f"{PREFIX}checkouts_total_sum", False),
        (f"{PREFIX}hold_seconds_bucket", True),
        (f"{PREFIX}hold_seconds", False),
        (f"{PREFIX}hold_seconds_by_site_sum", True),
        (f"{PREFIX}hold_seconds_by_site_bucket", False),
        (f"{PREFIX}hold_seconds_by_site", False),
        (f"{PREFIX}sizes", False),
    ],
)
def test_a_wrong_name_is_found(name: str, exists: bool) -> None:
    """``_metric()`` finds a metric only by the names of its series."""
    assert exists == (_metric(name) is not None)


@every_board
def test_legends_name_labels_that_are_there(name: str) -> None:
    """The labels in a legend are labels that the query keeps."""
    for panel in grafana.panels(grafana.load(name)):
        for target in panel["targets"]:
            kept = {
                label
                for node, _ in grafana.walk(grafana.parsed(target["expr"]))
                if isinstance(node, promql.AggregateExpr) and node.modifier is not None
                for label in node.modifier.labels
            }
            assert kept >= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])), target


def test_every_metric_is_shown() -> None:
    """Each metric is in a dashboard or a rule, or in the list of exceptions."""
    exprs = [target.expr for name in grafana.NAMES for target in grafana.targets(grafana.load(name))]
    shown = _names(exprs)
    for path in (ROOT / "config" / "prometheus" / "rules").glob("*.rules.yml"):
        groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
        shown |= _names([rule["expr"] for group in groups for rule in group["rules"]])
    missing = METRICS.keys() - {metric.name for name in shown if (metric := _metric(name))}
    assert EXCUSED.keys() == missing


def _names(exprs: list[str]) -> set[str]:
    return {str(one.name) for expr in exprs for one in grafana.selectors(grafana.parsed(expr))}


def test_command(tmp_path: Path) -> None:
    """`dashboards --out` writes the bundled files and prints their paths."""
    done = run("dashboards", "--out", tmp_path / "new" / "boards")
    assert (0, "") == (done.returncode, done.stderr)
    written = [Path(line) for line in done.stdout.splitlines()]
    assert [tmp_path / "new" / "boards" / f"{name}.json" for name in sorted(grafana.NAMES)] == written
    for path in written:
        assert (grafana.DIRECTORY / path.name).read_bytes() == path.read_bytes()


def test_command_that_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If a file cannot be written, the command prints one line with the path and the reason, and ends with status 1."""
    (tmp_path / "file").touch()
    assert 1 == main(["dashboards", "--out", str(tmp_path / "file")])
    said = capsys.readouterr()
    assert "" == said.out
    assert re.fullmatch(r"sqlalchemy-pool-exporter: cannot write '.*/file/database\.json': .+\n", said.err)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [(["--help"], 0, "dashboards"), (["dashboards", "--help"], 0, "--out DIR"), (["dashboards"], 2, "--out")],
)
def test_command_help(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help names the command and its option, and the option is required."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert status == ended.value.code
    assert said in "".join(capsys.readouterr())
