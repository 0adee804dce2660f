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
    """Add the fields that the SDK does not support, and remove an obsolete one."""
    del board["style"]  # Grafana 10.2 removed it: each user chooses a theme
    numbers = count(1)
    for panel in board["panels"]:
        # A link to a panel contains its id. Without an id here, Grafana assigns a new one at each load.
        panel["id"] = next(numbers)
    for annotation in board["annotations"]["list"]:
        # The texts of an annotation are fields that only Prometheus' annotations have.
        annotation["titleFormat"] = "{{alertname}}"
        annotation["tagKeys"] = "severity,job,pool,database"
        annotation["useValueForTime"] = False
    return board


def main() -> None:
    """Write all dashboards."""
    for name, board in BOARDS.items():
        (DIRECTORY / f"{name}.json").write_text(text(board()), encoding="utf-8")


if __name__ == "__main__":
    main()
