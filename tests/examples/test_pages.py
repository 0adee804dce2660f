# SPDX-License-Identifier: Apache-2.0
"""The pages of the recipes show the files themselves, and all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.paths import ROOT
from tools import generate_recipes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest
# Shown by docs/deployment.md, and as a whole chart.
ELSEWHERE = ("examples/servers/tasks.py", "examples/helm/")


@pytest.mark.parametrize("page", generate_recipes.pages(), ids=lambda page: page.stem)
def test_blocks_are_the_files(page: Path) -> None:
    """Each block of a page is its file, word for word; `python -m tools.generate_recipes` writes them."""
    text = page.read_text("utf-8")
    assert generate_recipes.written(text) == text


def test_a_changed_file_is_noticed() -> None:
    """A block that is not its file, and a block that is missing, are replaced by the file."""
    path = "examples/web/flask_app.py"
    whole = f"<!-- file: {path} -->\n```python\n{(ROOT / path).read_text('utf-8')}```\n"
    assert f"{whole}\nthen" == generate_recipes.written(f"<!-- file: {path} -->\n```python\nold\n```\n\nthen")
    assert f"{whole}\nthen" == generate_recipes.written(f"<!-- file: {path} -->\n\nthen")
    assert [path] == generate_recipes.shown(whole)


def test_every_recipe_is_shown() -> None:
    """Each file below examples/ is on a page."""
    shown = {
        path for page in generate_recipes.pages() for path in generate_recipes.shown(page.read_text("utf-8"))
    }
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "examples").rglob("*")
        if path.suffix in {".py", ".yaml"} and path.name != "__init__.py"
    }
    assert len(files) > 20
    assert set() == {path for path in files - shown if not path.startswith(ELSEWHERE)}


def test_recipes_are_short() -> None:
    """A reader copies a whole file: none has more than 70 lines."""
    for path in (ROOT / "examples").rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 70, path
