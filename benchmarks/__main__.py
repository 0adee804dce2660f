# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks, print the tables and write them into the documentation.

A complete run writes ``docs/benchmarks.md`` and the README's table. A run that is quick, partial or lacks a package
writes only to ``--output`` and ``--readme``, so that it does not publish incomplete figures by accident.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkout, memory, names, pauses, report, scrape, server, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .report import Table

_SECTIONS: dict[str, Callable[..., Iterator[Table]]] = {
    "checkout": checkout.run,
    "server": server.run,
    "memory": memory.run,
    "scrape": scrape.run,
    "names": names.run,
    "pauses": pauses.run,
    "threads": threads.run,
}
_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections; return 0 if every row could be measured."""
    options = _options(arguments)
    facts = report.environment()
    print("\n".join(f"{name}: {value}" for name, value in facts), flush=True)
    tables = list(_tables(options.only or list(_SECTIONS), quick=options.quick))
    missing = [reason for table in tables for reason in table.missing]
    worth_publishing = not (options.quick or options.only or missing)
    _write(tables, facts, options, worth_publishing=worth_publishing)
    return 1 if missing else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run, not what does it cost")
    parser.add_argument(
        "--only", action="append", choices=_SECTIONS, help="measure this section only (repeatable)"
    )
    parser.add_argument("--output", type=Path, help="the page to write (default: docs/benchmarks.md)")
    parser.add_argument("--readme", type=Path, help="the file whose block to replace (default: README.md)")
    return parser.parse_args(arguments)


def _tables(sections: Sequence[str], *, quick: bool) -> Iterator[Table]:
    start = time.monotonic()
    for section in sections:
        for table in _SECTIONS[section](quick=quick):
            print(f"\n{table.terminal()}\n  ({time.monotonic() - start:.0f} s)", flush=True)
            for reason in table.missing:
                print(f"error: {reason}", file=sys.stderr, flush=True)
            yield table


def _write(
    tables: Sequence[Table],
    facts: Sequence[tuple[str, str]],
    options: argparse.Namespace,
    *,
    worth_publishing: bool,
) -> None:
    command = " ".join(
        [
            "python -m benchmarks",
            *(["--quick"] if options.quick else []),
            *(f"--only {name}" for name in options.only or []),
        ]
    )
    output = options.output or (_ROOT / "docs" / "benchmarks.md" if worth_publishing else None)
    readme = options.readme or (_ROOT / "README.md" if worth_publishing else None)
    if output is not None:
        report.write(output, report.document(tables, command, facts))
        print(f"\nwrote {output}")
    if readme is not None and report.replace_block(readme, report.excerpt(tables, command, facts)):
        print(f"updated {readme}")


if __name__ == "__main__":
    sys.exit(main())
