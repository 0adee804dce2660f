# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, show every row, and write the figures that they show; the figures themselves are not tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure, names
from benchmarks.report import Table, replace_block
from tests.support.paths import ROOT

pytestmark = pytest.mark.newest  # `make bench` installs the newest dependencies

ROWS = (
    "nothing",
    "two empty listeners",
    "sqlalchemy-pool-exporter",
    "the same with the site of each checkout",
    "the same without sites",
    "the same with OpenTelemetry",
    "the same interpreted",
    "three prometheus_client calls",
    "sqlalchemy-collectd",
    "opentelemetry-instrumentation-sqlalchemy",
)
VARIANTS = ("Checkout and return", "among other work", "with pre-ping", "under contention")
# Makes the competitors' packages unimportable, even where they are installed.
WITHOUT_COMPETITORS = """
import sys
sys.modules.update(dict.fromkeys(("opentelemetry.sdk.metrics", "sqlalchemy_collectd.client.plugin")))
"""


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, where the benchmarks are, and return the ended process with its output."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=500,  # on a busy machine; less than what pytest takes for a hang
        check=False,
    )


@pytest.mark.soak
def test_every_way_to_watch_a_pool_is_a_row_of_every_table(tmp_path: Path) -> None:
    """A quick run prints each table with all rows, and writes the same figures to the output page."""
    page = tmp_path / "docs" / "benchmarks.md"

    result = run("-m", "benchmarks", "--quick", "--only", "checkout", "--output", page)

    assert result.stdout.count("two empty listeners  ") == len(VARIANTS), result.stderr
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert len(VARIANTS) == len(titles)
    for section, title in zip(text.split("\n## ")[1:], VARIANTS, strict=True):
        assert title in section.partition("\n")[0]
        assert list(ROWS) == re.findall(
            r"^\| ([A-Za-z_ -]+?) \| (?:[\d,]+|not measured) \|", section, flags=re.MULTILINE
        )
    own = next(line for line in text.splitlines() if line.startswith("| sqlalchemy-pool-exporter |"))
    for figure in own.strip("| ").split(" | "):
        assert figure in result.stdout
    assert "`python -m benchmarks --quick --only checkout`" in text


@pytest.mark.soak
def test_a_package_that_is_missing_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    """If a competitor is missing, its rows say "not measured", and the run fails and names the extra to install."""
    page = tmp_path / "benchmarks.md"

    Path(tmp_path, "sitecustomize.py").write_text(WITHOUT_COMPETITORS, encoding="utf-8")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))

    result = run("-m", "benchmarks", "--quick", "--only", "checkout", "--output", page, PYTHONPATH=path)

    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for name in ("sqlalchemy-collectd", "opentelemetry-instrumentation-sqlalchemy"):
        assert len(VARIANTS) == sum(name in line for line in errors)
        assert len(VARIANTS) == page.read_text(encoding="utf-8").count(f"| {name} | not measured |")
    assert all("pip install 'sqlalchemy-pool-exporter[bench]'" in line for line in errors)


def test_a_scrape_of_many_workers_is_a_row_for_each_number() -> None:
    """The scrape benchmark has a row for each number of workers; our scrape shows all series of prometheus_client's."""
    result = run("-m", "benchmarks", "--quick", "--only", "scrape")

    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r" +[14] +[04] ", line)]
    assert [["1", "0"], ["4", "4"]] == [row[:2] for row in rows]
    for row in rows:
        ours, theirs = (int(number.replace(",", "")) for number in (row[-2].rstrip(","), row[-1]))
        assert 0 < ours - theirs < 80


def test_what_waits_for_a_scrape_is_a_row_for_each_kind_of_work() -> None:
    """Each kind of work is measured alone, beside a scrape without pauses, and beside one with them."""
    result = run("-m", "benchmarks", "--quick", "--only", "pauses")

    assert result.returncode == 0, result.stderr
    for work in ("checkouts", "checkouts and a database", "an event loop"):
        for kind in ("nothing", "a scrape without pauses", "a scrape"):
            found = re.findall(
                rf"^  [0-9].* {work} +{kind} +[\d.]+ +[\d.]+", result.stdout, flags=re.MULTILINE
            )
            assert 2 == len(found), (work, kind)


def test_a_quick_run_publishes_nothing_by_itself() -> None:
    """Without --output, a quick run changes neither the documentation's page nor the README."""
    published = [ROOT / "docs" / "benchmarks.md", ROOT / "README.md"]
    before = [path.read_bytes() if path.exists() else None for path in published]

    result = run("-m", "benchmarks", "--quick", "--only", "memory")

    assert result.returncode == 0, result.stderr
    assert "an open connection" in result.stdout
    assert before == [path.read_bytes() if path.exists() else None for path in published]


def test_the_readmes_table_is_replaced_between_its_markers(tmp_path: Path) -> None:
    """The text between the markers is replaced; the text around them does not change."""
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- benchmark:start -->\nold\n<!-- benchmark:end -->\nafter\n", encoding="utf-8"
    )

    assert replace_block(readme, "new\ntable")
    assert replace_block(readme, "newer")

    expected = "before\n<!-- benchmark:start -->\nnewer\n<!-- benchmark:end -->\nafter\n"
    assert expected == readme.read_text(encoding="utf-8")


def test_a_readme_without_both_markers_is_left_alone(tmp_path: Path) -> None:
    """A file that lacks a marker or does not exist is not touched."""
    readme = tmp_path / "README.md"

    assert not replace_block(readme, "table")
    assert not readme.exists()
    for text in ("no markers\n", "<!-- benchmark:start -->\n", "<!-- benchmark:end -->\n"):
        readme.write_text(text, encoding="utf-8")
        assert not replace_block(readme, "table")
        assert text == readme.read_text(encoding="utf-8")


def test_the_halves_of_a_pair_take_turns_in_going_first() -> None:
    """The halves of a pair run as A B, then as B A; each round begins with another pair."""
    turns: list[str] = []

    def turn(name: str, nanoseconds: int) -> measure.Turn:
        def take() -> int:
            turns.append(name)
            return nanoseconds

        return take

    times = measure.paired(2, [(turn("a", 1), turn("A", 2)), (turn("b", 3), turn("B", 4))])

    assert ["a", "A", "b", "B", "B", "b", "A", "a"] == turns
    assert [[(1, 2), (1, 2)], [(3, 4), (3, 4)]] == times


def test_what_is_added_is_not_moved_by_rounds_in_which_the_machine_slept() -> None:
    """A round at half speed and interrupted turns change neither the median of the added time nor the relative cost."""
    listeners = [(1000, 1200), (2000, 2400), (1000, 1200), (1000, 1200), (1000, 90_000), (80_000, 1200)] * 5
    others = [(1000, 1500), (2000, 3000), (1000, 1500), (70_000, 1500), (1000, 1500), (1000, 95_000)] * 5

    assert 200.0 == round(measure.added(listeners).median, 6)
    assert 2.5 == round(measure.relative(others, listeners).median, 6)
    assert measure.relative(others, listeners) == measure.relative(others, listeners)


def test_the_interval_of_a_median_is_made_of_observations() -> None:
    """The bounds of the median's interval are the observations that the sign test gives, whatever their order."""
    values = [float(value) for value in range(100)]

    assert measure.Spread(40.0, 49.5, 59.0) == measure.confidence(values)
    assert measure.Spread(40.0, 49.5, 59.0) == measure.confidence(values[::-1])
    assert measure.Spread(7.0, 7.0, 7.0) == measure.confidence([7.0])


def test_a_table_on_the_terminal_stands_in_columns() -> None:
    """The first column is aligned left and the figures right, under their heads."""
    table = Table(
        title="Title", note="Note.", columns=("of", "bytes"), rows=(("a pool", "9"), ("b", "1,000"))
    )

    assert "Title\n  of       bytes\n  a pool       9\n  b        1,000" == table.terminal()


@pytest.mark.soak
def test_names_that_come_and_go_cost_what_the_live_ones_cost() -> None:
    """Twice as many tenants, one after the other, take no more of the file, no more memory and no more series."""
    few, many = (names.measured(count, is_live=False) for count in (80, 160))
    assert few.series == many.series
    # A file system counts a block of its own for some files.
    assert many.file < 1.01 * few.file
    assert many.memory < 1.2 * few.memory


def test_live_pools_cost_their_own() -> None:
    """A pool more takes a page of the file, and its own series."""
    few, many = (names.measured(count, is_live=True) for count in (10, 20))
    assert many.file <= 2 * few.file
    assert many.series < 2 * few.series
