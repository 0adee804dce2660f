# SPDX-License-Identifier: Apache-2.0
"""Write the rules of the audit into ``docs/audit.md``; a test fails until that is current."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy_pool_exporter.audit.rules import RULES

FILE = Path(__file__).parents[1] / "docs" / "audit.md"
START, END = "<!-- rules:start -->\n", "<!-- rules:end -->"


def rules() -> str:
    """Return a table of the rules, and a section for each."""
    lines = ["| rule | severity | needs a probe of the database |", "| --- | --- | --- |"]
    lines += [
        f"| [`{rule.name}`](#{rule.name}) | {rule.severity} | {'yes' if rule.needs_server else ''} |"
        for rule in RULES
    ]
    for rule in RULES:
        lines += [
            "",
            f"### {rule.name}",
            "",
            rule.summary,
            "",
            f"Why: {rule.why}",
            "",
            f"Remedy: {rule.remedy}",
        ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with its generated part replaced."""
    before, rest = FILE.read_text("utf-8").split(START, 1)
    return f"{before}{START}{rules()}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    FILE.write_text(page(), "utf-8")
