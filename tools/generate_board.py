# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/pools-v1.schema.json`` from the types in ``board/schema.py`` and the comments beside their fields."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from sqlalchemy_pool_exporter.board import schema
from sqlalchemy_pool_exporter.board.answers import API

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).parents[1] / "docs" / f"pools-v{schema.VERSION}.schema.json"


def text() -> str:
    """Return the JSON Schema of an answer."""
    found = TypeAdapter(schema.Board).json_schema()
    definitions = found.pop("$defs")
    for name, field, comment in _comments():
        described = found if name == "Board" else definitions[name]
        described["properties"][field]["description"] = comment
    for one in (found, *definitions.values()):
        _simplify(one)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"GET {API}"}
    return json.dumps({**head, **found, "title": head["title"], "$defs": definitions}, indent=2) + "\n"


def _simplify(described: dict[str, Any]) -> None:
    described.pop("title", None)
    for one in described["properties"].values():
        one.pop("title", None)
    if "description" in described:
        described["description"] = " ".join(described["description"].split())


def _comments() -> Iterator[tuple[str, str, str]]:
    """Yield the comments beside the fields: class, field, comment."""
    source = inspect.getsource(schema)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found = re.search(r"  # (.+)$", lines[field.lineno - 1])
                    if found is not None:
                        yield node.name, field.target.id, found[1]


def main() -> None:
    FILE.write_text(text(), "utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
