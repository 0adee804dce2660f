# SPDX-License-Identifier: Apache-2.0
"""Check dashboards with TypeScript against Grafana's schemas of the oldest and the newest version that is supported.

Each panel becomes a constant of the type that its kind of panel has. A literal with a field that the type does not have
is an error, which no check of JSON that was loaded would find.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

from tests.support import grafana

from .build import BuildError, run
from .page import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.grafana import Board

AGES = ("oldest", "newest")
_ERROR = re.compile(
    r"^typed/(?P<name>\w+)\.(?P<age>\w+)\.ts\((?P<line>\d+),\d+\): error TS\d+: (?P<said>.*(?:\n +.*)*)",
    re.MULTILINE,
)
_PANEL = re.compile(r"const panel_\d+: .* = // (.*)")


def mistyped(build: Path, boards: Mapping[str, Board]) -> list[Fault]:
    """Return what the schemas do not allow; ``build`` has TypeScript and the schemas."""
    shutil.rmtree(build / "typed", ignore_errors=True)
    (build / "typed").mkdir()
    for name, board in boards.items():
        for age in AGES:
            (build / "typed" / f"{name}.{age}.ts").write_text(_typed(board, age), "utf-8")
    return [fault for age in AGES for fault in _compiled(build, age)]


def _compiled(build: Path, age: str) -> list[Fault]:
    try:
        run(
            "node",
            "node_modules/typescript/bin/tsc",
            "--project",
            f"tsconfig.{age}.json",
            "--pretty",
            "false",
        )
    except BuildError as error:
        faults = [_fault(build, match) for match in _ERROR.finditer(str(error))]
        if not faults:
            raise  # of our types, not of the dashboards
        return faults
    return []


def _typed(board: Board, age: str) -> str:
    """Return a program that assigns each part of a dashboard to a constant of its type."""
    without = {key: value for key, value in board.items() if key != "panels"}
    lines = [
        f"import type {{ Board, Panels }} from '../schema/{age}';",
        f"export const panel_0: Board = // the dashboard\n{_literal(without)};",
    ]
    panels = [*(one for one in board["panels"] if one["type"] == "row"), *grafana.panels(board)]
    lines += [
        f"export const panel_{panel['id']}: Panels['{panel['type']}'] = // {panel['title']}\n{_literal(_alone(panel))};"
        for panel in panels
    ]
    return "\n".join(lines)


def _alone(panel: dict[str, object]) -> dict[str, object]:
    """Return a row without its panels, and any other panel as it is."""
    return {**panel, "panels": []} if panel["type"] == "row" else panel


def _literal(part: object) -> str:
    return json.dumps(part, indent=1)


def _fault(build: Path, match: re.Match[str]) -> Fault:
    name, age, line, said = match["name"], match["age"], int(match["line"]), match["said"]
    text = (build / "typed" / f"{name}.{age}.ts").read_text("utf-8").splitlines()
    panel = next(found[1] for at in reversed(text[:line]) if (found := _PANEL.search(at)))
    return Fault(name, panel, "mistyped", f"{age} Grafana: {text[line - 1].strip()} {' '.join(said.split())}")
