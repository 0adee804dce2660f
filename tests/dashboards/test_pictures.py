# SPDX-License-Identifier: Apache-2.0
"""The pictures in the documentation: drawn from any dashboard, labelled, small and used."""

from __future__ import annotations

import re
from math import nan
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support import grafana
from tests.support.paths import ROOT
from tools.draw import CELL, HEAD, LABEL, WIDTH, Line, column_widths, draw

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest
DOCS = ROOT / "docs"


class Made:
    """Invented answers: two series for each query, with a gap and a NaN."""

    start, end = 1_000_000.0, 1_000_060.0

    def over_time(self, expr: str) -> list[Line]:
        times = [self.start + second for second in range(60) if second not in range(20, 25)]
        labels = (
            [{"le": le, "job": "a"} for le in ("0.5", "+Inf")] if "_bucket" in expr else [{"job": "a"}, {}]
        )
        return [
            Line(one, [(when, nan if when == times[3] else (when % 10) * (at + 1)) for when in times])
            for at, one in enumerate(labels)
        ]

    def at_end(self, _expr: str) -> list[Line]:
        return [Line({"job": "a", "pool": pool}, [(self.end, 1.5)]) for pool in ("b", "c")]


class Nothing(Made):
    """Answers without series."""

    def over_time(self, _expr: str) -> list[Line]:
        return []

    def at_end(self, _expr: str) -> list[Line]:
        return []


@pytest.mark.soak
@pytest.mark.parametrize("name", grafana.NAMES)
def test_draw(tmp_path: Path, name: str) -> None:
    """Each dashboard can be drawn."""
    _draw(grafana.load(name), tmp_path)


def test_draw_each_type(tmp_path: Path) -> None:
    """A panel of each type can be drawn."""
    _draw(_one_of_each_type(), tmp_path)


def _draw(board: dict[str, Any], tmp_path: Path) -> None:
    """Assert that a picture has the size of the dashboard's grid, and that its metadata has the label."""
    draw(board, Made(), "Job: All", tmp_path / "board.png")
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    with Image.open(tmp_path / "board.png") as image:
        assert (WIDTH, HEAD + CELL * rows) == image.size
        assert LABEL == image.info["Description"]


def test_draw_nothing(tmp_path: Path) -> None:
    """A dashboard without data can be drawn."""
    draw(_one_of_each_type(), Nothing(), "", tmp_path / "board.png")


def _one_of_each_type() -> dict[str, Any]:
    board = grafana.load("pool")
    board["panels"] = list({panel["type"]: panel for panel in board["panels"]}.values())
    return board


def test_texts_of_a_table_have_room() -> None:
    """A column is as wide as its longest text, at the cost of the columns whose texts are short."""
    texts = [["site", "orders.api:Handlers.query:215"], ["job", "shop"], ["pool", "orders"]]
    first, *others = column_widths(texts, 450)
    assert first > 6.5 * len(texts[0][1])
    assert 450 == first + sum(others)
    assert 1 == len(set(others))


@pytest.mark.parametrize("name", grafana.NAMES)
def test_committed_picture(name: str) -> None:
    """Each committed picture is labelled, below 400 kB, and shown in the documentation."""
    path = DOCS / "images" / f"{name}.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as image:
        assert LABEL == image.info["Description"]
    assert re.search(rf"!\[.+\]\(images/{name}\.png\)", (DOCS / "dashboards.md").read_text("utf-8"))
