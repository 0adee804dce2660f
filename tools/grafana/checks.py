# SPDX-License-Identifier: Apache-2.0
"""All checks of a dashboard that need answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.grafana import Board

    from .answers import Json
    from .page import Fault, Grafana


def faults(page: Grafana, name: str, board: Board, incident: Json, blind: Mapping[str, Json]) -> list[Fault]:
    """Return what is wrong with a dashboard.

    Args:
        page: the page with Grafana's code.
        name: of the dashboard.
        board: the dashboard.
        incident: answers of a time in which every query finds something.
        blind: answers of times in which nothing is seen, by what they are called.
    """
    found = page.with_data(name, board, incident)
    for state, answers in blind.items():
        found += page.blind(name, board, answers, state)
    return list(dict.fromkeys(found + page.draw(name, board, incident)))
