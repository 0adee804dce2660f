# SPDX-License-Identifier: Apache-2.0
"""Run SQLAlchemy's own tests with every pool instrumented, and compare how each test ends with a run without that.

``python -m tools.try_sqlalchemy .venv/wheel/*.whl .venv/pure/*.whl`` tries each wheel with the installed SQLAlchemy,
whose source distribution it gets from the package index. ``--sqlalchemy '2.0.*'`` takes that version instead, or
several. The interpreter needs pytest, aiosqlite and the dependencies of the wheels. It fails if a test ends otherwise,
if a fault in recording was counted, or if the numbers of a pool are not the pool's own after a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# Those of pools, engines, events, reconnects and asyncio.
TESTS = (
    *(
        f"test/engine/test_{name}.py"
        for name in (
            "pool",
            "reconnect",
            "execute",
            "transaction",
            "logging",
            "parseconnect",
            "ddlevents",
            "deprecations",
        )
    ),
    "test/base/test_events.py",
    "test/base/test_concurrency.py",
    "test/ext/asyncio",
)
DATABASES = ("sqlite", "aiosqlite")
# Tests after which the pool's own numbers are wrong.
WRONG_BY_ITSELF = {
    "test_connect_checkout_handler_always_gets_info": "takes records out of the pool's queue",
    "test_connect_handler_not_called_for_recycled": "likewise",
    "test_dispose_closes_pooled": "goes on with a pool that was disposed of; it says that -1 are checked out",
}
_TOOLS = Path(__file__).resolve().parent


class Trial(NamedTuple):
    """One way to run the tests."""

    tests: Path  # SQLAlchemy's source distribution, unpacked
    path: tuple[Path, ...]  # what Python finds first
    is_instrumented: bool

    def run(self, *chosen: str) -> dict[str, Any]:
        """Run tests; return what the plugin wrote."""
        outcomes = self.tests / "outcomes.json"
        outcomes.unlink(missing_ok=True)
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "-p",
                    "every_pool",
                    "-p",
                    "no:cacheprovider",
                    "--maxfail=0",
                    "-q",
                ),
                *(f"--db={name}" for name in DATABASES),
                *("--outcomes", str(outcomes), *(["--instrument"] if self.is_instrumented else []), *chosen),
            ],
            cwd=self.tests,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (*self.path, _TOOLS))),
                "PYTHONNOUSERSITE": "1",  # SQLAlchemy's tests then take the one that is installed
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said: dict[str, Any] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
        if not said.get("tests"):
            raise SystemExit(f"no test was run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Try each wheel with each version; return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--sqlalchemy", action="append", help="a version, such as 2.0.*; the installed one")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="paths in SQLAlchemy's source distribution")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        differs = [
            _try_version(wanted, options.wheels, options.tests, Path(folder) / str(number))
            for number, wanted in enumerate(options.sqlalchemy or [version("sqlalchemy")])
        ]
    return any(differs)


def _try_version(wanted: str, wheels: Sequence[Path], chosen: Sequence[str], folder: Path) -> bool:
    """Print the results of one SQLAlchemy; return whether something differs."""
    _pip("download", "--no-binary", "sqlalchemy", "--no-deps", "--dest", str(folder), f"sqlalchemy=={wanted}")
    (archive,) = folder.glob("*.tar.gz")
    found = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"SQLAlchemy {found}, {python}, {' and '.join(DATABASES)}", flush=True)
    library: tuple[Path, ...] = ()
    if found != version("sqlalchemy"):
        library = (folder / "sqlalchemy",)
        _pip("install", "--no-deps", "--target", str(library[0]), f"sqlalchemy=={found}")
    trials = [Trial(_unpacked(archive, folder / "without"), library, is_instrumented=False)]
    for number, wheel in enumerate(wheels):
        site = folder / f"site-{number}"
        _pip("install", "--no-deps", "--target", str(site), str(wheel))
        trials.append(
            Trial(_unpacked(archive, folder / f"with-{number}"), (site, *library), is_instrumented=True)
        )
    # SQLAlchemy 2.0 has not all of them.
    chosen = [each for each in chosen if (trials[0].tests / each).exists()]
    # At the same time: the tests sleep most of the time.
    with ThreadPoolExecutor() as threads:
        without, *instrumented = threads.map(lambda trial: trial.run(*chosen), trials)
    print(f"  without: {_numbers(without)}", flush=True)
    different = [
        _report(trials[0], trial, without, said) for trial, said in zip(trials[1:], instrumented, strict=True)
    ]
    return any(different)


def _report(plain: Trial, trial: Trial, without: dict[str, Any], said: dict[str, Any]) -> bool:
    """Print the result of one wheel; return whether something differs."""
    different = _different(without["tests"], said["tests"])
    again: set[str] = set()
    if different:
        # Some of the tests depend on time, and fail now and then on a busy machine.
        one, other = (each.run(*sorted(different))["tests"] for each in (plain, trial))
        again = {test for test in different if test not in one or one[test] != other.get(test)}
    wrong = {test: found for test, found in said["different"].items() if _name(test) not in WRONG_BY_ITSELF}
    totals = {key: int(value) for key, value in said["totals"].items()}
    print(
        f"  {said['hot_path']}: {_numbers(said)}; the same as without: {'no' if again else 'yes'}",
        f"    {totals['pools']:,} pools, {totals['checkouts']:,} checkouts, {totals['recording_faults']} faults;",
        f"    after {len(said['tests']) - len(wrong):,} of {len(said['tests']):,} tests the numbers are the pools' own",
        *(f"    ended otherwise, and the same when run again: {test}" for test in sorted(different - again)),
        *(f"    ENDED OTHERWISE: {test}\n{said['texts'].get(test, '')}" for test in sorted(again)),
        *(f"    OTHER NUMBERS: {test}: {', '.join(found)}" for test, found in wrong.items()),
        sep="\n",
        flush=True,
    )
    return bool(again or wrong or totals["recording_faults"] or not totals["checkouts"])


def _different(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {test for test in one.keys() | other.keys() if one.get(test) != other.get(test)}


def _numbers(said: dict[str, Any]) -> str:
    counts = Counter(said["tests"].values())
    return ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in ("passed", "failed", "skipped"))


def _name(test: str) -> str:
    return test.rpartition("::")[2].partition("[")[0]


def _unpacked(archive: Path, folder: Path) -> Path:
    """Return a source tree of its own, because some tests write files into it."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def _pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], check=True
    )


if __name__ == "__main__":
    sys.exit(main())
