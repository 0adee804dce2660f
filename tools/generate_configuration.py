# SPDX-License-Identifier: Apache-2.0
"""Write the reference in ``configuration.md`` from the models in ``sqlalchemy_pool_exporter.sidecar.config``.

Run it after changing an option; a test fails until the page is up to date.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import PydanticUndefined

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.sidecar.config import Config
from sqlalchemy_pool_exporter.sidecar.sources import VARIABLES
from sqlalchemy_pool_exporter.sidecar.validation import Section, describe, json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- generated: options -->", "<!-- end of generated -->"


class Option(NamedTuple):
    """One option as the reference shows it."""

    path: str
    expects: str
    default: object
    description: str


def options_of(model: type[Section], path: str = "") -> Iterator[Option]:
    """Yield every option of ``model`` with its dotted path; an option of a list's elements is ``list[].name``."""
    schema = json_schema(model)
    for name, field in model.model_fields.items():
        where = f"{path}.{name}" if path else name
        inner = next(iter(typing.get_args(field.annotation)), field.annotation)
        section = inner if isinstance(inner, type) and issubclass(inner, Section) else None
        listed = section is not field.annotation
        if listed:
            expects = describe(schema, schema["properties"][name])
            yield Option(where, expects, field.get_default(), field.description or "")
        if section is not None:
            yield from options_of(section, where + "[]" * listed)


def options() -> str:
    """Return the options as Markdown, one table for each section."""
    lines: list[str] = []
    section = ""
    for option in options_of(Config):
        head = option.path.partition(".")[0].removesuffix("[]")
        if head != section:
            section = head
            lines += ["", f"### {section}", "", "| option | values | default | |", "|---|---|---|---|"]
        expects = option.expects.replace("|", "\\|")
        lines.append(f"| `{option.path}` | {expects} | {_shown(option.default)} | {option.description} |")
    return "\n".join([*lines[1:], ""])


def variables() -> str:
    """Return the environment variables as Markdown."""
    rows = [f"| `{variable}` | `{option}` |" for variable, option in VARIABLES.items()]
    first = f"| `{environment.CONFIG}` | the configuration file |"
    return "\n".join(["### Environment", "", "| variable | sets |", "|---|---|", first, *rows, ""])


def page(text: str) -> str:
    """Return ``text`` with its generated part replaced."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{options()}\n{variables()}{END}{after}"


def _shown(default: object) -> str:
    if default is PydanticUndefined:
        return "*required*"
    if default is None:
        return "none"
    if isinstance(default, Address):
        return f"`{default}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, tuple):  # empty, or of numbers
        return f"`[{', '.join(f'{one:g}' for one in default)}]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
