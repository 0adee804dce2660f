# SPDX-License-Identifier: Apache-2.0
"""Render ``config/alerts.yml``, and write the tables of its rules and the runbooks' lines on panels.

Run it after changing a rule or a threshold; a test fails until the files are up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dashboards.source.alerts import SHOWN
from sqlalchemy_pool_exporter.alerting import rules

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUNBOOKS = DOCS / "runbooks"
SOURCE = ROOT / "config" / "alerts.yml"
RENDERED = ROOT / "config" / "prometheus" / "rules" / rules.FILE
THRESHOLDS = ROOT / "config" / rules.THRESHOLDS
SEVERITIES = ("info", "warning", "critical")


def rendered_rules() -> str:
    """Return the rules with the default thresholds."""
    return rules.render(SOURCE.read_text("utf-8"))


def declared_thresholds() -> str:
    """Return the thresholds as JSON, for the command, which has no YAML to read them from the source."""
    declared = rules.declarations(SOURCE.read_text("utf-8"))
    return json.dumps(declared, indent=2, ensure_ascii=False) + "\n"


def pages() -> dict[Path, str]:
    """Return the pages with their generated parts replaced."""
    source = SOURCE.read_text("utf-8")
    parts = {
        "alerts": alerts(source, "runbooks/"),
        "recorded": recorded(source),
        "thresholds": thresholds(source),
    }
    pages = {DOCS / "rules.md": parts, RUNBOOKS / "README.md": {"alerts": alerts(source, "")}}
    pages |= {RUNBOOKS / f"{name}.md": {"panels": panels(name)} for name in SHOWN}
    return {page: _renewed(page.read_text("utf-8"), of_page) for page, of_page in pages.items()}


def panels(name: str) -> str:
    """Return the line of a runbook that says which panels of which dashboard show the alert."""
    shown = SHOWN[name]
    named = ", ".join(f"*{title}*" for title in shown.panels)
    board = f"[{shown.board.capitalize()}](../dashboards.md)"
    return f"On the dashboard {board}, to which the alert's `dashboard_url` leads: {named}.\n"


def alerts(source: str, runbooks: str) -> str:
    """Return a Markdown table of the alerts, each with its severities, their delays and their summaries."""
    tiers: dict[str, list[dict[str, Any]]] = {}
    for rule in _rules(source):
        if "alert" in rule:
            tiers.setdefault(rule["alert"], []).append(rule)
    lines = ["| alert | severity, after | what is the case |", "| --- | --- | --- |"]
    for name, of_name in tiers.items():
        of_name.sort(key=lambda rule: SEVERITIES.index(rule["labels"]["severity"]))
        after = "<br>".join(f"{rule['labels']['severity']}, {rule['for']}" for rule in of_name)
        summaries = "<br>".join(dict.fromkeys(rule["annotations"]["summary"] for rule in of_name))
        lines.append(f"| [`{name}`]({runbooks}{name}.md) | {after} | {summaries} |")
    return "\n".join(lines) + "\n"


def recorded(source: str) -> str:
    """Return a Markdown table of the recording rules."""
    lines = ["| recorded | from |", "| --- | --- |"]
    for rule in _rules(source):
        if "record" in rule:
            expr = " ".join(rule["expr"].split()).replace("( ", "(").replace(" )", ")")
            lines.append(f"| `{rule['record']}` | `{expr}` |")
    return "\n".join(lines) + "\n"


def thresholds(source: str) -> str:
    """Return a Markdown table of the thresholds."""
    lines = ["| threshold | default | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{threshold.name}` | {threshold.default} | {threshold.help} |"
        for threshold in rules.thresholds(source).values()
    ]
    return "\n".join(lines) + "\n"


def _rules(source: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(rules.render(source))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _renewed(text: str, parts: dict[str, str]) -> str:
    for name, content in parts.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, rest = text.split(start, 1)
        text = f"{before}{start}{content}{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    THRESHOLDS.write_text(declared_thresholds(), "utf-8")
    RENDERED.write_text(rendered_rules(), "utf-8")
    for written, renewed in pages().items():
        written.write_text(renewed, "utf-8")
