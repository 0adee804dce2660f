# SPDX-License-Identifier: Apache-2.0
"""Write the reference in ``configuration.md`` from the types of ``sqlalchemy_pool_exporter.config``.

Run it after changing an option; a test fails until that is done.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sqlalchemy_pool_exporter.sidecar import config, schema

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- generated: options -->", "<!-- end of generated -->"


def options() -> str:
    """Return the options as Markdown, one table for each section."""
    lines: list[str] = []
    section = ""
    for option in schema.options(config.Config, config.texts(Path())):
        head = option.path.partition(".")[0].removesuffix("[]")
        if head != section:
            section = head
            lines += ["", f"### {section}", "", "| option | values | default | |", "|---|---|---|---|"]
        expects = option.expects.replace("|", "\\|")
        lines.append(f"| `{option.path}` | {expects} | {_shown(option.default)} | {option.description} |")
    return "\n".join([*lines[1:], ""])


def variables() -> str:
    """Return the environment variables as Markdown."""
    rows = [f"| `{variable}` | `{option}` |" for variable, option in config.VARIABLES.items()]
    first = f"| `{config.CONFIG_VARIABLE}` | the configuration file |"
    return "\n".join(["### Environment", "", "| variable | sets |", "|---|---|", first, *rows, ""])


def page(text: str) -> str:
    """Return ``text`` with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{options()}\n{variables()}{END}{after}"


def _shown(default: object) -> str:
    if default is msgspec.NODEFAULT:
        return "*required*"
    if default is None:
        return "none"
    if default == ():
        return "`[]`"
    if isinstance(default, config.Address):
        return f"`{default}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
