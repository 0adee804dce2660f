# SPDX-License-Identifier: Apache-2.0
"""Gives each test of promtool a file of its own, with the rules that it asks for and those that these read.

promtool evaluates all rules at each interval of each test, and a test asks for few of them: the others take three
quarters of its time. ``.ci/run`` runs the files as they are, too.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
# What follows ALERTS, and in it the matcher of the alert's name.
_ALERTS = re.compile(r"\bALERTS(?:_FOR_STATE)?\b(?:\{([^}]*)\})?")
_ALERT_NAME = re.compile(r"""\balertname\s*=~?\s*["']([^"']*)["']""")

Rule = dict[str, Any]


def reduced(path: Path, directory: Path) -> Iterable[Path]:
    """Write a file for each test of a file of tests into a directory; yield their paths."""
    whole = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
    groups = [group for name in whole["rule_files"] for group in _groups((path.parent / name).resolve())]
    for number, test in enumerate(whole["tests"]):
        rules = _wanted(test, [rule for group in groups for rule in group["rules"]])
        kept = [{**group, "rules": [rule for rule in group["rules"] if rule in rules]} for group in groups]
        kept = [group for group in kept if group["rules"]]
        rules_file, file = directory / f"{number}.rules.yml", directory / f"{path.stem}-{number}.yml"
        rules_file.write_text(yaml.dump({"groups": kept}, Dumper=yaml.CSafeDumper, sort_keys=False))
        names = [group["name"] for group in kept]
        order = [name for name in whole.get("group_eval_order", ()) if name in names]
        reduced = {**whole, "rule_files": [rules_file.name], "group_eval_order": order, "tests": [test]}
        file.write_text(yaml.dump(reduced, Dumper=yaml.CSafeDumper, sort_keys=False))
        yield file


@cache
def _groups(path: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)["groups"]
    return groups


def _wanted(test: dict[str, Any], rules: list[Rule]) -> list[Rule]:
    """Return the rules that a test asks for, and those whose results these read."""
    found: list[Rule] = []
    expressions = [one["expr"] for one in test.get("promql_expr_test", ())]
    alerts = {one["alertname"] for one in test.get("alert_rule_test", ())}
    more = [rule for rule in rules if rule.get("alert") in alerts]
    while more or expressions:
        found += more
        expressions += [rule["expr"] for rule in more]
        read = set[str]().union(*(_read(expression, rules) for expression in expressions))
        expressions = []
        more = [rule for rule in rules if _name(rule) in read and rule not in found]
    return found


def _read(expression: str, rules: list[Rule]) -> set[str]:
    """Return the names of the rules whose results an expression reads."""
    names = {_name(rule) for rule in rules}
    if "__name__" in expression:
        return names
    read = names & set(_NAME.findall(expression))
    for matchers in _ALERTS.findall(expression):
        pattern = (_ALERT_NAME.findall(matchers) or [".*"])[0]
        read |= {rule["alert"] for rule in rules if "alert" in rule and re.fullmatch(pattern, rule["alert"])}
    return read


def _name(rule: Rule) -> str:
    name: str = rule.get("alert") or rule["record"]
    return name
