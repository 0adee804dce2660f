# SPDX-License-Identifier: Apache-2.0
"""What each watcher counts beside the truth: the tables of docs/migrate.md are what the program puts out."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from itertools import zip_longest
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from tests.benchmarks.test_benchmarks import run
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from tests.support import pg

pytestmark = pytest.mark.newest

NEEDED = ("sqlalchemy_collectd", "opentelemetry.instrumentation.sqlalchemy", "opentelemetry.sdk")


def cells(text: str) -> list[list[str]]:
    """Return the rows of all tables in a text."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.fixture(scope="module")
def rows(server: pg.Server) -> list[list[str]]:
    """Run the program under all watchers."""
    if missing := [module for module in NEEDED if not _is_installed(module)]:
        pytest.skip(f"{missing} not installed")
    result = run("-m", "benchmarks.counts", "--dsn", server.dsn("counts"))
    assert result.returncode == 0, result.stderr
    return cells(result.stdout)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_this_project_counts_the_truth(rows: list[list[str]]) -> None:
    """At every moment, and in every total, the numbers of this project are what the program did."""
    assert len(rows) > 15
    for what, truth, own, *_others in rows:
        if truth != "truth":
            assert (what, truth) == (what, own)


def test_the_page_has_the_tables(rows: list[list[str]]) -> None:
    """The page has the program's tables; of sqlalchemy-collectd's wrong numbers, that they are wrong."""
    page = (ROOT / "docs" / "migrate.md").read_text("utf-8")
    shown = cells(page.partition("<!-- benchmark:start -->")[2].partition("<!-- benchmark:end -->")[0])
    collectd = rows[0].index("sqlalchemy-collectd")
    for expected, found in zip_longest(shown, rows):
        both = (expected[collectd], found[collectd])
        if all(cell.startswith("**") for cell in both):
            expected[collectd] = found[collectd]
        assert expected == found


def test_the_others_differ(rows: list[list[str]]) -> None:
    """The program tells the watchers apart: each of the others is wrong at some moment."""
    for column in range(3, len(rows[0])):
        assert any(row[column].startswith("**") for row in rows), rows[0][column]


def test_a_bound_method_keeps_the_first_pool() -> None:
    """A gauge that is set to a method of the pool stays with it after ``dispose()``, as the page warns."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    first = engine.pool.checkedout  # type: ignore[attr-defined]
    engine.dispose()
    gc.collect()
    with engine.connect():
        assert (0, 1) == (first(), engine.pool.checkedout())  # type: ignore[attr-defined]
    engine.dispose()
