# SPDX-License-Identifier: Apache-2.0
"""Write the dashboards' JSON: ``python -m dashboards.source.generate``."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from . import alerts, database, fleet, overview, pool

DIRECTORY = Path(__file__).parents[1]
BOARDS = {
    "overview": overview.board,
    "pool": pool.board,
    "database": database.board,
    "fleet": fleet.board,
}


def text(name: str) -> str:
    """Return the JSON of a dashboard as Grafana's file provisioning reads it."""
    made: dict[str, Any] = json.loads(json.dumps(BOARDS[name]().build(), cls=JSONEncoder))
    return json.dumps(finished(name, made), indent=2, ensure_ascii=False) + "\n"


def finished(name: str, board: dict[str, Any]) -> dict[str, Any]:
    """Add links to runbooks and the fields that the SDK does not support, and remove an obsolete one."""
    del board["style"]  # Grafana 10.2 removed it: each user chooses a theme
    numbers = count(1)
    for panel in board["panels"]:
        # A link to a panel contains its id. Without an id here, Grafana assigns a new one at each load.
        panel["id"] = next(numbers)
        if found := alerts.runbooks_of(name, panel["title"]):
            panel["links"] = [
                {"title": alert, "url": alerts.runbook(alert), "type": "link", "targetBlank": True}
                for alert in found
            ]
    for variable in board["templating"]["list"]:
        # What is hidden is found anew with each time range, and is in no address.
        if variable.get("hide"):
            variable["skipUrlSync"] = True
    for annotation in board["annotations"]["list"]:
        # The texts of an annotation are fields that only Prometheus' annotations have.
        annotation["titleFormat"] = "{{alertname}}"
        annotation["tagKeys"] = "severity,job,pool,database"
        annotation["useValueForTime"] = False
    return board


def main() -> None:
    """Write all dashboards."""
    for name in BOARDS:
        (DIRECTORY / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
