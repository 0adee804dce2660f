# SPDX-License-Identifier: Apache-2.0
"""Whether a message that the documentation shows is one that the package still writes.

Such a message has values of its own, so it is not compared as a whole: each piece of it between two values must stand
in the package's source as it is, in a string, an f-string or a format.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING, Final

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

# The package, and the programs whose output a page shows.
SOURCES: Final = ("exporter/sqlalchemy_pool_exporter", "benchmarks", "demo", "examples", "tools")
# What a message has from outside: where, who, when, how much. Each is cut out of a message before it is compared.
_VALUES: Final = re.compile(
    r"""
      [\w.]+:\w+:\d+                              # a site
    | \b(?:Task|caller|worker)-\d+                # a task or a thread
    | \b(?:GET|POST)\ /\w*                        # a label
    | '[\w -]+' | \borders(?=:)                   # a name
    | \b\d{4}-\d\d-\d\d\ [\d:]+[+]\d{4}           # a time
    | Connection\ refused\ \(ConnectionRefusedError\)
    | (?<![\w/])/[\w/]+                           # a directory
    | \b\d[\d.,]*(?:\ ?(?:ms|s|min|h|/s)\b)?      # a number, perhaps with its unit
    """,
    re.VERBOSE,
)
_PLACES: Final = re.compile(r"\{[^{}]*\}|%(?:\.\d+)?[srdfgi]|\n")
# Words that the package may join from shorter pieces, as "connection" and "s".
_JOINTS: Final = 5
_MARKS: Final = " .,:;()'\"="


@cache
def pieces() -> tuple[list[str], set[str]]:
    """Return the constant pieces of several words of all strings in the sources, the longest first, and all words."""
    found = set()
    for path in (path for name in SOURCES for path in (ROOT / name).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                found |= set(_cut(node.value))
    several = sorted((piece for piece in found if " " in piece), key=len, reverse=True)
    return several, {word for piece in found for word in re.findall(r"\w+", piece)}


def unexplained(message: str) -> list[str]:
    """Return what a message says between two values that the package does not write so."""
    several, words = pieces()
    rest = _VALUES.sub("\0", " ".join(message.split()))
    for piece in several:
        if piece in rest:
            rest = re.sub(rf"{_edge(piece[0], '<')}{re.escape(piece)}{_edge(piece[-1])}", "\0", rest)
    runs = (run.strip(_MARKS) for run in rest.split("\0"))
    return [
        run for run in runs if len(found := re.findall(r"\w+", run)) > _JOINTS or not words.issuperset(found)
    ]


def _edge(character: str, behind: str = "") -> str:
    """Return a pattern by which a piece that begins or ends with a word is not found in a longer word."""
    return rf"(?{behind}!\w)" if re.match(r"\w", character) else ""


def _cut(constant: str) -> Iterator[str]:
    """Yield the pieces of a constant between its values, also those that its example values are cut out of."""
    for part in _PLACES.split(constant):
        for piece in _VALUES.split(" ".join(part.replace("`", "").split())):
            if re.search("[A-Za-z]", piece):
                yield piece.strip()
