# SPDX-License-Identifier: Apache-2.0
"""The fenced code blocks of the documentation."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES: Final = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(path for name in ("docs", "helm", "examples", "demo") for path in (ROOT / name).rglob("*.md")),
    ]
)
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```+ *(?P<language>[^\s`]*)[^\n`]*\n(?P<text>.*?)^(?P=indent)```+ *$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page as a path from the root, the line where it begins, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first(self) -> str:
        """Return the first line, by which an exception names a block."""
        return self.text.partition("\n")[0]


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = path.read_text("utf-8")
    return [
        Block(
            page=str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=textwrap.dedent(match["text"]),
        )
        for match in _FENCE.finditer(text)
    ]


def commands(text: str) -> str:
    """Return what a reader types of a console: the lines after a prompt and their continuations, without the output."""
    typed, more, end = [], False, None
    for line in text.splitlines():
        if line.startswith("$ ") or more or end:
            typed.append(line.removeprefix("$ ") if not (more or end) else line)
            if end:
                end = None if line == end else end
            elif document := re.search(r"<<-?'?(\w+)", line):
                end = document[1]
            more = end is None and line.endswith("\\")
    return "\n".join(typed) + "\n"


def output(text: str) -> str:
    """Return what the commands of a console put out."""
    typed = commands(text).splitlines()
    return "\n".join(line for line in text.splitlines() if line.removeprefix("$ ") not in typed)
