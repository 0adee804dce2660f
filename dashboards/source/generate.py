# SPDX-License-Identifier: Apache-2.0
"""Write the dashboards' JSON: ``python -m dashboards.source.generate``."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from . import database, overview, pool

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

DIRECTORY = Path(__file__).parents[1]
BOARDS = {"overview": overview.board, "pool": pool.board, "database": database.board}


def text(board: Dashboard) -> str:
    """Return the JSON of a dashboard as Grafana's file provisioning reads it."""
    made: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    return json.dumps(finished(made), indent=2, ensure_ascii=False) + "\n"


def finished(board: dict[str, Any]) -> dict[str, Any]:
    """Add what the SDK has no words for."""
    del board["style"]  # the reader's choice, and gone from Grafana 10.2 on
    numbers = count(1)
    for panel in board["panels"]:
        # Links to a panel hold its number, and Grafana gives new ones at each load where there are none.
        panel["id"] = next(numbers)
    for annotation in board["annotations"]["list"]:
        # What a mark says is a property of Prometheus' annotations alone.
        annotation["titleFormat"] = "{{alertname}}"
        annotation["tagKeys"] = "severity,job,pool,database"
        annotation["useValueForTime"] = False
    return board


def main() -> None:
    """Write them all."""
    for name, board in BOARDS.items():
        (DIRECTORY / f"{name}.json").write_text(text(board()), encoding="utf-8")


if __name__ == "__main__":
    main()
