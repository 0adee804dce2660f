# SPDX-License-Identifier: Apache-2.0
"""Recording rules and alerts: form, names, thresholds; each alert has tests and a runbook."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dashboards.source.alerts import SHOWN
from sqlalchemy_pool_exporter import metrics as catalogue
from sqlalchemy_pool_exporter.alerting import rules
from sqlalchemy_pool_exporter.errors import ThresholdError
from tests.support import grafana
from tests.support.incident_list import INCIDENTS, UNSTAGED
from tests.support.paths import ROOT
from tests.support.promtool import evaluate
from tools import generate_rules

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest  # the rules do not depend on dependency versions


def load(text: str) -> Any:
    """Read YAML with the C parser, because the rules have a hundred kilobytes."""
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
        catalogue.PROCESS_METRICS,
        catalogue.APPLICATION_METRICS,
        catalogue.FLEET_METRICS,
        catalogue.RELOAD_METRICS,
        catalogue.OTLP_METRICS,
        catalogue.DATABASE_METRICS,
        catalogue.PROBED_POOL_METRICS,
    )
    for metric in metrics
}
# ``up`` is Prometheus' own; Prometheus, the sidecar and histograms add these labels to those of the catalogue.
OF_TARGETS = {"up"}
ADDED = {"job", "instance", "cluster", "namespace", "pool", "worker", "database", "le"}

# Tests in which no alert may fire.
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
    """Run promtool; if it fails, show its output."""
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# The files.


def test_the_rendered_rules_are_the_sources() -> None:
    """The committed rules file equals what the command writes without settings."""
    assert generate_rules.rendered_rules() == RENDERED.read_text("utf-8")


def test_the_thresholds_without_yaml_are_the_sources() -> None:
    """The committed JSON, from which the command reads the thresholds, says what the source says."""
    assert generate_rules.declared_thresholds() == generate_rules.THRESHOLDS.read_text("utf-8")
    assert rules.bundled_thresholds() == THRESHOLDS


@pytest.mark.parametrize(
    "command", [("rules", "--list"), ("rules", "--out", "."), ("dashboards", "--out", ".")]
)
def test_commands_of_the_plain_package(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Rules and dashboards are written where no library is installed that only the sidecar or the terminal needs."""
    program = (
        "import sys\n"
        "for name in ('aiohttp', 'asyncpg', 'bcrypt', 'cryptography', 'pydantic', 'textual', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "from sqlalchemy_pool_exporter.cli import main\n"
        f"sys.exit(main({[*command]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True, cwd=tmp_path
    )
    assert (0, "") == (done.returncode, done.stderr)
    if command == ("rules", "--out", "."):
        assert RENDERED.read_text("utf-8") == (tmp_path / rules.FILE).read_text("utf-8")


def test_the_page_of_the_documentation_is_generated() -> None:
    """The generated pages with the alerts, the thresholds and the index of the runbooks are up to date."""
    for page, text in generate_rules.pages().items():
        assert text == page.read_text("utf-8"), page


@promtool
def test_prometheus_takes_the_rules() -> None:
    """``promtool check rules`` accepts the committed rules."""
    run("check", "rules", RENDERED)


@promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    """The promtool tests of the rules pass."""
    done = evaluate(path)
    assert done.returncode == 0, done.stdout + done.stderr


# Tests of the promtool tests.


def _cases(name: str) -> list[tuple[str, int, int, list[str]]]:
    """Return the cases of an alert: name of the test, time and interval in seconds, severities that fire."""
    return [
        (
            test["name"],
            _seconds(case["eval_time"]),
            _seconds(test["interval"]),
            [alert["exp_labels"]["severity"] for alert in case["exp_alerts"]],
        )
        for test in _tests()
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]


@cache
def _tests() -> list[dict[str, Any]]:
    return [test for path in TESTS for test in load(path.read_text("utf-8"))["tests"]]


def _seconds(duration: str) -> int:
    hours, minutes, seconds = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", duration).groups()  # type: ignore[union-attr]
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + int(seconds or 0)


@pytest.mark.parametrize(("name", "severity"), TIERS)
def test_each_tier_is_tested_to_fire_and_not_a_minute_before(name: str, severity: str) -> None:
    """For each tier some test has it firing, and not yet firing one interval earlier."""
    cases = _cases(name)
    assert any(
        severity in later[3] and severity not in earlier[3] and later[1] - earlier[1] == later[2]
        for earlier, later in pairwise(cases)
        if earlier[0] == later[0]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("test", SILENT)
def test_each_alert_is_tested_to_be_silent(name: str, test: str) -> None:
    """Each alert has a case that does not fire in each silent test: healthy, unlimited, NullPool, no probes."""
    assert [[]] == [severities for of, _, _, severities in _cases(name) if of == test]


def test_silence_is_tested_all_along() -> None:
    """In the silent tests no alert fires at any time, not only at the end."""
    asked = {"expr": 'count_over_time(ALERTS{alertstate="firing"}[2h])', "eval_time": "2h", "exp_samples": []}
    assert {name: [asked] for name in SILENT} == {
        test["name"]: test["promql_expr_test"] for test in _tests() if test["name"] in SILENT
    }


def test_each_tier_is_staged_or_says_why_not() -> None:
    """Each tier fires in a staged incident, except for those in UNSTAGED, each of which has a reason."""
    staged = {tier for incident in INCIDENTS for tier in incident.expected}
    tiers = {(name.removeprefix("SQLAlchemyPool"), severity) for name, severity in TIERS}
    assert tiers == staged | set(UNSTAGED)
    assert not staged & set(UNSTAGED)


# Form.


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alerts_have_the_usual_form(rule: dict[str, Any]) -> None:
    """Alerts have a CamelCase name, a severity, a one-sentence summary, a description with a value, a runbook link."""
    name, annotations = rule["alert"], rule["annotations"]
    assert re.fullmatch(r"SQLAlchemyPool([A-Z][a-z]+)+", name)
    assert len(name) <= 40
    assert ["severity"] == list(rule["labels"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook_url", "dashboard_url"} == set(annotations)
    assert re.fullmatch(r"[A-Z][^{}]*\.", annotations["summary"])
    assert re.search(r"\{\{ \$(value|labels\.\w+)", annotations["description"])
    assert "\n" not in annotations["description"]
    assert "  " not in annotations["description"]
    assert URL.format(name) == annotations["runbook_url"]
    # The promtool tests have what it becomes: an address relative to Grafana, with the alert's labels as variables.
    assert annotations["dashboard_url"].startswith(f"/d/sqlalchemy-pool-{SHOWN[name].board}?")


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_leads_to_a_dashboard_and_back(name: str) -> None:
    """The panels that show an alert exist and link to its runbook, and the runbook names them."""
    shown = SHOWN[name]
    runbook = (RUNBOOKS / f"{name}.md").read_text("utf-8")
    links = {
        panel["title"]: [link["url"] for link in panel.get("links", ())]
        for panel in grafana.panels(grafana.load(shown.board))
    }
    for title in shown.panels:
        assert URL.format(name) in links[title]
        assert f"*{title}*" in runbook


def test_no_panel_leads_to_an_alert_that_is_gone() -> None:
    """Only alerts that there are have panels."""
    assert set(NAMES) == SHOWN.keys()


def test_a_tier_is_there_once() -> None:
    """The tiers of an alert share its name but not their severity, so that one can inhibit the other."""
    assert len(TIERS) == len(set(TIERS))


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_a_runbook(name: str) -> None:
    """Each alert's runbook has the four sections Meaning, Impact, Diagnosis and Mitigation, none of them empty."""
    text = (RUNBOOKS / f"{name}.md").read_text("utf-8")
    assert text.startswith(f"# {name}\n")
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert ["Meaning", "Impact", "Diagnosis", "Mitigation"] == list(parts)
    assert all(len(part.split()) >= 15 for part in parts.values())
    assert re.search(r"^```(promql|sql|console|python)$", parts["Diagnosis"], re.MULTILINE)


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    """Each runbook except the index belongs to an alert."""
    assert {*NAMES, "README"} == {page.stem for page in RUNBOOKS.glob("*.md")}


# Names.


def names_in(expr: str) -> set[str]:
    """Return the metrics in an expression, by their names in the catalogue."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    names = set(re.findall(r"(?<![\w:])(?:sqlalchemy_pool_\w+|up)\b(?!:)", bare))
    return {_family(name) for name in names}


def _family(name: str) -> str:
    """Return the name in the catalogue of the metric that has the series of this name."""
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    return base if base in METRICS and METRICS[base].kind in {"histogram", "summary"} else name


def queries_of(page: Path) -> list[str]:
    """Return the PromQL queries of a page."""
    return re.findall(r"^```promql\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    """Rules use only metrics, labels and label values that exist in the catalogue or are recorded by a rule."""
    _check_query(rule["expr"])


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_runbooks_ask_for_what_there_is(page: Path) -> None:
    """The same holds for the queries of the runbooks."""
    for query in queries_of(page):
        _check_query(query)


@promtool
def test_prometheus_understands_the_runbooks(tmp_path: Path) -> None:
    """Every query of the runbooks is valid PromQL."""
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
        metric = METRICS.get(_family(name))
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
    """Every threshold is used, every placeholder is a threshold, and no rule has a literal duration or limit."""
    groups = SOURCE.partition("\ngroups:\n")[2]
    assert set(THRESHOLDS) == set(re.findall(r"\$\{(\w+)\}", groups))
    for rule in yaml.safe_load(SOURCE)["groups"]:
        for one in rule["rules"]:
            assert "record" in one or re.fullmatch(r"\$\{\w+_for\}", one["for"])
            assert not re.search(r"\[\d", one["expr"])
            limits = re.findall(r"(?:[<>]=?|==|!=)\s*(?:bool\s*)?([\d.]+)", one["expr"])
            assert set(limits) <= {"0", "1"}, one


def test_thresholds_are_explained() -> None:
    """Each threshold has a help sentence and a valid default; the wait objective must be a bound of a bucket."""
    for threshold in THRESHOLDS.values():
        assert re.fullmatch(r"[A-Z].*\.", threshold.help), threshold
        assert threshold.accepts(threshold.default), threshold
    assert catalogue.BUCKETS == THRESHOLDS["wait_objective_seconds"].one_of


def test_one_restart_of_the_server_is_shorter_than_stale() -> None:
    """The stale window is shorter than the alert's ``for``: the dead connections of one restart do not fire it."""
    assert _default("stale_window") < _default("stale_for")


def test_what_is_over_is_no_page() -> None:
    """A failure is recent for less long than it must last, so that a short fault is not told once it is over."""
    assert _default("starvation_timeout_recent") < _default("starvation_timeout_for")
    assert _default("connect_warning_recent") < _default("connect_warning_for")
    assert _default("connect_critical_recent") < _default("connect_critical_for")


def test_a_stalled_worker_is_told_while_its_past_is_known() -> None:
    """The stretch in which a worker was at work ends before it stood still for as long as the alert takes."""
    assert int(THRESHOLDS["stall_seconds"].default) + _default("stall_for") < _default("stall_before")
    assert _default("stall_window") + _default("stall_before") == _default("stall_known")


def _default(name: str) -> int:
    """Return the default of a threshold that is a duration, in seconds."""
    return _seconds(THRESHOLDS[name].default)


@promtool
def test_every_threshold_can_be_set(tmp_path: Path) -> None:
    """Every threshold can be set, and Prometheus accepts the rules with the new values."""
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
    """The objective matches its bucket both as ``1.0``, as in the exposition, and as ``1``, as in newer Prometheus."""
    rendered = rules.render(SOURCE, {"wait_objective_seconds": value})
    (pattern,) = set(re.findall(r'le=~"([^"]*)"', rendered))
    assert all(re.fullmatch(pattern, le) for le in ("1", "1.0"))
    assert not any(re.fullmatch(pattern, le) for le in ("10", "10.0", "0.1"))


def test_wrong_thresholds_are_told_all_at_once() -> None:
    """One error lists all unknown names, each with a suggestion, and all invalid values, each with what is expected."""
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
