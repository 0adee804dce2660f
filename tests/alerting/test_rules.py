# SPDX-License-Identifier: Apache-2.0
"""Recording rules and alerts: form, names and thresholds, and that each alert has its tests and its runbook."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter import bundled
from sqlalchemy_pool_exporter import metrics as catalogue
from sqlalchemy_pool_exporter.alerting import rules
from sqlalchemy_pool_exporter.errors import ThresholdError
from tests.support import sidecar
from tests.support.incident_list import INCIDENTS, UNSTAGED
from tests.support.paths import ROOT
from tools import generate_rules

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest  # text, and a program that is no dependency


def load(text: str) -> Any:
    """Read YAML, a hundred kilobytes of it, with the parser in C."""
    return yaml.load(text, yaml.CSafeLoader)


SOURCE = (ROOT / "config" / "alerts.yml").read_text("utf-8")
RENDERED = ROOT / "config" / "prometheus" / "rules" / rules.FILE
RUNBOOKS = ROOT / "docs" / "runbooks"
TESTS = sorted((ROOT / "config" / "prometheus" / "tests").glob("*.yml"))
THRESHOLDS = rules.thresholds(SOURCE)
RULES: list[dict[str, Any]] = [
    rule for group in load(RENDERED.read_text("utf-8"))["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
NAMES = list(dict.fromkeys(rule["alert"] for rule in ALERTS))
TIERS = [(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS]
URL = "https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter/blob/main/docs/runbooks/{}.md"
METRICS = {
    metric.name: metric
    for metrics in (
        catalogue.POOL_METRICS,
        catalogue.EXPORTER_METRICS,
        catalogue.APPLICATION_METRICS,
        catalogue.SIDECAR_METRICS,
        catalogue.RELOAD_METRICS,
        catalogue.DATABASE_METRICS,
    )
    for metric in metrics
}
# Prometheus' own, of each target; and what Prometheus and the sidecar add to the labels of ours.
OF_TARGETS = {"up"}
ADDED = {"job", "instance", "cluster", "namespace", "pool", "worker", "database", "le"}

# Tests in which nothing may fire.
SILENT = (
    "healthy, two workers under the sidecar",
    "healthy, in an application",
    "unlimited pools",
    "NullPool",
    "no probes",
    "probes without an answer yet",
)

promtool = pytest.mark.requires("promtool")


def run(*arguments: str | Path) -> None:
    """Run promtool, which says what is wrong."""
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# The files.


def test_the_rendered_rules_are_the_sources() -> None:
    """What is committed for those who load a file is what the command writes without a setting."""
    assert generate_rules.rendered_rules() == RENDERED.read_text("utf-8")


def test_the_page_of_the_documentation_is_generated() -> None:
    """Alerts, thresholds and the index of the runbooks are listed as they are."""
    for page, text in generate_rules.pages().items():
        assert text == page.read_text("utf-8"), page


@promtool
def test_prometheus_takes_the_rules() -> None:
    """As they are, and with another value of every threshold."""
    run("check", "rules", RENDERED)


@promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    """Prometheus' own tests of rules pass."""
    run("test", "rules", path)


# The tests of the tests.


def _cases(name: str) -> list[tuple[str, int, int, list[str]]]:
    """Return the cases of an alert: name of the test, when in minutes, the test's interval, severities that fire."""
    return [
        (
            test["name"],
            _minutes(case["eval_time"]),
            _minutes(test["interval"]),
            [alert["exp_labels"]["severity"] for alert in case["exp_alerts"]],
        )
        for test in _tests()
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]


@cache
def _tests() -> list[dict[str, Any]]:
    return [test for path in TESTS for test in load(path.read_text("utf-8"))["tests"]]


def _minutes(duration: str) -> int:
    hours, minutes = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?", duration).groups()  # type: ignore[union-attr]
    return 60 * int(hours or 0) + int(minutes or 0)


@pytest.mark.parametrize(("name", "severity"), TIERS)
def test_each_tier_is_tested_to_fire_and_not_a_minute_before(name: str, severity: str) -> None:
    """Some test has the tier fire, and has it silent one interval earlier."""
    cases = _cases(name)
    assert any(
        severity in later[3] and severity not in earlier[3] and later[1] - earlier[1] == later[2]
        for earlier, later in pairwise(cases)
        if earlier[0] == later[0]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("test", SILENT)
def test_each_alert_is_tested_to_be_silent(name: str, test: str) -> None:
    """When all is well, for pools that have no limit or keep no connection, and where no database is probed."""
    assert [[]] == [severities for of, _, _, severities in _cases(name) if of == test]


def test_silence_is_tested_all_along() -> None:
    """Not at the end alone: no alert fires at any time of these tests."""
    asked = {"expr": 'count_over_time(ALERTS{alertstate="firing"}[2h])', "eval_time": "2h", "exp_samples": []}
    assert {name: [asked] for name in SILENT} == {
        test["name"]: test["promql_expr_test"] for test in _tests() if test["name"] in SILENT
    }


def test_each_tier_is_staged_or_says_why_not() -> None:
    """What promtool says of a tier is also seen in an incident on real servers, but for those that take too long."""
    staged = {tier for incident in INCIDENTS for tier in incident.expected}
    tiers = {(name.removeprefix("SQLAlchemyPool"), severity) for name, severity in TIERS}
    assert tiers == staged | set(UNSTAGED)
    assert not staged & set(UNSTAGED)


# Form.


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alerts_have_the_usual_form(rule: dict[str, Any]) -> None:
    """Name, severity, a summary that is a sentence, a description with what is the case, a runbook."""
    name, annotations = rule["alert"], rule["annotations"]
    assert re.fullmatch(r"SQLAlchemyPool([A-Z][a-z]+)+", name)
    assert len(name) <= 40
    assert ["severity"] == list(rule["labels"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook_url"} == set(annotations)
    assert re.fullmatch(r"[A-Z][^{}]*\.", annotations["summary"])
    assert re.search(r"\{\{ \$(value|labels\.\w+)", annotations["description"])
    assert "\n" not in annotations["description"]
    assert "  " not in annotations["description"]
    assert URL.format(name) == annotations["runbook_url"]


def test_a_tier_is_there_once() -> None:
    """The tiers of an alert share its name and differ in their severity, so that one can inhibit the other."""
    assert len(TIERS) == len(set(TIERS))


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_a_runbook(name: str) -> None:
    """It has the four parts that somebody who was woken up looks for, each with something in it."""
    text = (RUNBOOKS / f"{name}.md").read_text("utf-8")
    assert text.startswith(f"# {name}\n")
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert ["Meaning", "Impact", "Diagnosis", "Mitigation"] == list(parts)
    assert all(len(part.split()) >= 15 for part in parts.values())
    assert re.search(r"^```(promql|sql|console|python)$", parts["Diagnosis"], re.MULTILINE)


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    """Each page but the index belongs to an alert."""
    assert {*NAMES, "README"} == {page.stem for page in RUNBOOKS.glob("*.md")}


# Names.


def names_in(expr: str) -> set[str]:
    """Return the metrics that an expression asks for, by the names of the catalogue."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    names = set(re.findall(r"(?<![\w:])(?:sqlalchemy_pool_\w+|up)\b(?!:)", bare))
    return {re.sub(r"_seconds_(bucket|count|sum)$", "_seconds", name) for name in names}


def queries_of(page: Path) -> list[str]:
    """Return the PromQL of a page."""
    return re.findall(r"^```promql\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    """Every metric is in the catalogue or recorded by a rule; every label and every value of one is, too."""
    _check_query(rule["expr"])


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_runbooks_ask_for_what_there_is(page: Path) -> None:
    """The same for the queries to run at night."""
    for query in queries_of(page):
        _check_query(query)


@promtool
def test_prometheus_understands_the_runbooks(tmp_path: Path) -> None:
    """Every query of every runbook is one."""
    queries = [query for page in sorted(RUNBOOKS.glob("*.md")) for query in queries_of(page)]
    assert len(queries) >= len(NAMES)
    group = [{"record": f"query_{at}", "expr": query} for at, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": group}]}))
    run("check", "rules", path)


def _check_query(expr: str) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert set(re.findall(r"\w+:sqlalchemy_pool_\w+:\w+", expr)) <= recorded
    assert names_in(expr) <= set(METRICS) | OF_TARGETS, expr
    for name, matchers in re.findall(r"(sqlalchemy_pool_\w+)(?::\w+)?\{([^}]*)\}", expr):
        metric = METRICS.get(re.sub(r"_seconds_(bucket|count|sum)$", "_seconds", name))
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
            own = set(metric.labels) if metric else {"state"}
            assert label in own | ADDED, expr
            if metric and metric.values and label in metric.labels and operator in {"=", "=~"}:
                assert set(value.split("|")) <= set(metric.values), expr
    clauses = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr)
    labels = {label.strip() for clause in clauses for label in clause.split(",")} - {""}
    assert labels <= ADDED | {label for metric in METRICS.values() for label in metric.labels}, expr


# Thresholds.


def test_thresholds_are_in_one_place() -> None:
    """Every one is used, every placeholder is one, and no rule has a duration or a limit of its own."""
    groups = SOURCE.partition("\ngroups:\n")[2]
    assert set(THRESHOLDS) == set(re.findall(r"\$\{(\w+)\}", groups))
    for rule in yaml.safe_load(SOURCE)["groups"]:
        for one in rule["rules"]:
            assert "record" in one or re.fullmatch(r"\$\{\w+_for\}", one["for"])
            assert not re.search(r"\[\d", one["expr"])
            limits = re.findall(r"(?:[<>]=?|==|!=)\s*(?:bool\s*)?([\d.]+)", one["expr"])
            assert set(limits) <= {"0", "1"}, one


def test_thresholds_are_explained() -> None:
    """Each has a sentence; those that are an end of a histogram's bucket can be nothing else."""
    for threshold in THRESHOLDS.values():
        assert re.fullmatch(r"[A-Z].*\.", threshold.help), threshold
        assert threshold.accepts(threshold.default), threshold
    assert catalogue.BUCKETS == THRESHOLDS["wait_objective_seconds"].one_of


def test_one_restart_of_the_server_is_shorter_than_stale() -> None:
    """Connections that are found dead once are in the window for its length, which must not be enough to fire."""
    assert _minutes(THRESHOLDS["stale_window"].default) < _minutes(THRESHOLDS["stale_for"].default)


@promtool
def test_every_threshold_can_be_set(tmp_path: Path) -> None:
    """Each value is in the rules then, and Prometheus takes them."""
    values = {}
    for at, threshold in enumerate(THRESHOLDS.values()):
        kind = threshold.expects
        values[threshold.name] = {
            "names of labels, with commas": "region, job",
            "a duration such as 90s or 1h30m": f"{at + 1}h7s",
        }.get(kind, "2.5" if threshold.one_of else f"0.{at:03}5" if threshold.most == 1 else f"{at}.125")
    path = tmp_path / "rules.yml"
    path.write_text(rules.render(SOURCE, values), "utf-8")
    run("check", "rules", path)
    assert all(value in path.read_text("utf-8") for value in values.values())


@pytest.mark.parametrize("value", ["1", "1.0", "1.00"])
def test_an_objective_meets_its_bucket_however_it_is_written(value: str) -> None:
    """The end of a bucket is 1.0 in an exposition and 1 in newer Prometheus; either is what ``1`` stands for."""
    rendered = rules.render(SOURCE, {"wait_objective_seconds": value})
    (pattern,) = set(re.findall(r'le=~"([^"]*)"', rendered))
    assert all(re.fullmatch(pattern, le) for le in ("1", "1.0"))
    assert not any(re.fullmatch(pattern, le) for le in ("10", "10.0", "0.1"))


def test_wrong_thresholds_are_told_all_at_once() -> None:
    """Unknown names with what is meant, and values that are none with what would be one."""
    values = {
        "held_second": "1",
        "nonsense": "1",
        "stuck_seconds": "2m",
        "stuck_for": "120",
        "stale_window": "0s",
        "held_for": "0s",
        "fleet_labels": 'job"}) or vector(1',
        "storm_ratio": "-1",
        "wait_objective_seconds": "0.3",
        "wait_objective_ratio": "99",
        "leaked_window": "٣m",
    }
    with pytest.raises(ThresholdError) as caught:
        rules.render(SOURCE, values)
    assert [
        "thresholds: 10 faults",
        "  held_second: unknown threshold, did you mean 'held_seconds'?",
        "  nonsense: unknown threshold, `rules --list` names them",
        "  stuck_seconds: expected a number from 0, got '2m'",
        "  stuck_for: expected a duration such as 90s or 1h30m, got '120'",
        "  stale_window: expected a duration such as 90s or 1h30m, got '0s'",
        "  fleet_labels: expected names of labels, with commas, got 'job\"}) or vector(1'",
        "  storm_ratio: expected a number from 0, got '-1'",
        (
            "  wait_objective_seconds: expected one of 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, "
            "0.5, 1, 2.5, 5, 10, 30, 60, got '0.3'"
        ),
        "  wait_objective_ratio: expected a number from 0 to 1, got '99'",
        "  leaked_window: expected a duration such as 90s or 1h30m, got '٣m'",
    ] == str(caught.value).splitlines()


# The command.


def test_the_command_writes_the_rules(tmp_path: Path) -> None:
    """Into a directory that need not be there, with the thresholds given; the last of two settings counts."""
    directory = tmp_path / "rules"
    settings = ["--set", "held_seconds=5", "--set", "held_seconds=60", "--set", "held_for=0s"]
    ended = sidecar.run("rules", "--out", directory, *settings)
    assert (0, f"{directory / rules.FILE}\n", "") == (ended.returncode, ended.stdout, ended.stderr)
    expected = rules.render(bundled.text("alerts.yml"), {"held_seconds": "60", "held_for": "0s"})
    assert expected == (directory / rules.FILE).read_text("utf-8")
    (held,) = [
        rule
        for group in yaml.safe_load(expected)["groups"]
        for rule in group["rules"]
        if rule.get("alert") == "SQLAlchemyPoolHeldTooLong"
    ]
    assert ("sqlalchemy_pool_longest_held_seconds > 60", "0s") == (held["expr"], held["for"])


def test_the_command_lists_the_thresholds() -> None:
    """Each on a line, with its default and what it means."""
    lines = sidecar.run("rules", "--list").stdout.splitlines()
    assert list(THRESHOLDS) == [line.split()[0] for line in lines]
    assert all(
        threshold.default in line and threshold.help in line
        for line, threshold in zip(lines, THRESHOLDS.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "{}", "--set", "held_seconds"], "expected NAME=VALUE, got 'held_seconds'"),
        (["--out", "{}", "--set", "held_seconds=long"], "held_seconds: expected a number from 0, got 'long'"),
        ([], "one of the arguments --out --list is required"),
    ],
)
def test_a_wrong_call_writes_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    """The status is 2, and the message says what was expected."""
    directory = tmp_path / "rules"
    ended = sidecar.run("rules", *(argument.format(directory) for argument in arguments))
    assert (2, True) == (ended.returncode, said in ended.stderr)
    assert not directory.exists()


def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """The status is 1, as for everything that is the machine's."""
    (tmp_path / "file").touch()
    ended = sidecar.run("rules", "--out", tmp_path / "file")
    assert (1, True) == (ended.returncode, "cannot write" in ended.stderr)
