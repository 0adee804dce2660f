# SPDX-License-Identifier: Apache-2.0
"""The trial of SQLAlchemy's own tests instruments every pool, and finds each test that then ends otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

import sqlalchemy_pool_exporter
from tools import try_sqlalchemy
from tools.try_sqlalchemy import Trial

pytestmark = pytest.mark.newest

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--db", action="append")
"""

TESTS = """
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool, StaticPool

class Link:
    def rollback(self): pass
    def close(self): pass

class Pool(QueuePool):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, pool_size=2, **options)

@pytest.mark.parametrize("kind", [QueuePool, Pool, StaticPool])
def test_pool(kind):
    kind(Link).connect().close()

def test_engine():
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0)
    engine.connect().close()
    engine.dispose()
    engine.connect().close()

def test_fails():
    raise RuntimeError

def test_skipped():
    pytest.skip()

def test_sees_it():
    assert "connect" not in vars(QueuePool(Link))

def test_forges_numbers():
    forged.append(QueuePool(Link))
    forged[0]._overflow = 0

forged = []
"""


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    """Tests of another project."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


@pytest.mark.soak
def test_what_it_reports(tests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts pools and checkouts, and names a test that sees the hooks and one after which numbers differ."""
    installed = Path(sqlalchemy_pool_exporter.__file__).parent.parent
    plain = Trial(tests, (), is_instrumented=False)
    instrumented = Trial(tests, (installed,), is_instrumented=True)
    without, said = plain.run(), instrumented.run()
    assert try_sqlalchemy._report(plain, instrumented, without, said)
    printed = capsys.readouterr().out
    assert f"  {said['hot_path']}: 5 passed, 2 failed, 1 skipped; the same as without: no\n" in printed
    assert "    7 pools, 5 checkouts, 0 faults;\n    after 7 of 8 tests the numbers" in printed
    assert "ENDED OTHERWISE: test_it.py::test_sees_it\n" in printed
    assert "OTHER NUMBERS: test_it.py::test_forges_numbers: QueuePool: (0.0, 0.0) in use" in printed
    assert printed.count("OTHER") == 2  # OTHERWISE, too


def test_nothing_differs(tests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If all tests end as without, it says so and reports no difference."""
    installed = Path(sqlalchemy_pool_exporter.__file__).parent.parent
    plain = Trial(tests, (), is_instrumented=False)
    instrumented = Trial(tests, (installed,), is_instrumented=True)
    chosen = ("-k", "not sees and not forges")
    assert not try_sqlalchemy._report(plain, instrumented, plain.run(*chosen), instrumented.run(*chosen))
    assert "the same as without: yes" in capsys.readouterr().out
