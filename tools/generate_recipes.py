# SPDX-License-Identifier: Apache-2.0
"""Write the files that the pages of ``docs/recipes`` show into them; a test fails until that is current.

A page has ``<!-- file: examples/web/flask_app.py -->`` before the block of code that shows the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = ROOT / "docs" / "recipes"
_BLOCK: Final = re.compile(r"<!-- file: (?P<path>\S+) -->\n(?:```.*?\n```\n)?", re.DOTALL)
_LANGUAGES: Final = {".py": "python", ".yaml": "yaml", ".service": "ini", ".conf": "ini"}


def pages() -> list[Path]:
    """Return the pages of the recipes."""
    return sorted(PAGES.glob("*.md"))


def shown(page: str) -> list[str]:
    """Return the paths of the files that a page shows."""
    return [found["path"] for found in _BLOCK.finditer(page)]


def written(page: str) -> str:
    """Return a page with each of its files as it is now."""

    def block(found: re.Match[str]) -> str:
        path = ROOT / found["path"]
        return f"<!-- file: {found['path']} -->\n```{_LANGUAGES[path.suffix]}\n{path.read_text('utf-8')}```\n"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    for one in pages():
        one.write_text(written(one.read_text("utf-8")), "utf-8")
