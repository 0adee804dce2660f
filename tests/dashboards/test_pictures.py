# SPDX-License-Identifier: Apache-2.0
"""The pictures in the documentation: labelled, small, of what exists, and shown."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from tests.support import grafana
from tests.support.paths import ROOT
from tools.pictures import LABEL, PICTURES, STAGES, Picture

pytestmark = pytest.mark.newest
DOCS = ROOT / "docs"
MOST = 3_000_000  # bytes of all pictures together


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.file)
def test_committed_picture(picture: Picture) -> None:
    """Each picture is committed and shown, says how it was drawn, is of a dashboard, and has the width of its look."""
    path = DOCS / "images" / f"{picture.file}.png"
    with Image.open(path) as image:
        assert LABEL == image.info["Description"]
        assert picture.look.width == image.width
    assert picture.board in grafana.NAMES
    assert re.search(rf"!\[.+\]\(images/{picture.file}\.png\)", (DOCS / "dashboards.md").read_text("utf-8"))


def test_every_state_is_staged() -> None:
    """Each picture is of a state that a stage has."""
    states = {state for states in STAGES.values() for state in states}
    assert {picture.state for picture in PICTURES} <= states


def test_size() -> None:
    """A clone of the repository stays small."""
    assert sum(path.stat().st_size for path in (DOCS / "images").iterdir()) < MOST


def test_no_other_picture() -> None:
    """Each file is one of the dashboards' pictures, or the board's."""
    drawn = {f"{picture.file}.png" for picture in PICTURES}
    assert drawn | {"board.png"} == {path.name for path in (DOCS / "images").iterdir()}
