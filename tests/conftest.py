# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test: a PostgreSQL server, a unique application name, and skips where a program is missing."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import pg

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from tests.support.incident_run import Played

# pytest rewrites asserts only in test files unless told; a failure in these helpers must show the compared values too.
pytest.register_assert_rewrite(
    "tests.support.pool_case", "tests.support.pool_machine", "tests.support.pool_operations"
)

# No deadline: the time of an example depends on the machine, not on the code.
settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")

_numbers = count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[pg.Server]:
    """Run a PostgreSQL for the session; each worker of a parallel run has its own."""
    with pg.running() as server:
        yield server


@pytest.fixture(scope="session")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Play all incidents at once for four minutes; yield the result, whose Prometheus tests can still query."""
    from tests.support.incident_list import INCIDENTS  # noqa: PLC0415 - imports its libraries only if a test needs it
    from tests.support.incident_run import play  # noqa: PLC0415

    with play(INCIDENTS, tmp_path_factory.mktemp("incidents")) as played:
        yield played


@pytest.fixture
def application_name(request: pytest.FixtureRequest) -> str:
    """Return a name that no other test uses; the test finds its server connections by it."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:40]  # PostgreSQL cuts names at 63 bytes
    return f"{test}-{next(_numbers)}"


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Leave out that a pool ended with connections open: it may be one of an earlier test, collected meanwhile.

    A thread of its own writes that, so it may come at any moment of a later test. The tests of it ask for
    ``caplog_of_all``.
    """
    caplog.handler.addFilter(_says_no_pool_ended)
    yield caplog
    caplog.handler.removeFilter(_says_no_pool_ended)


@pytest.fixture
def caplog_of_all(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Return ``caplog`` with what is said of pools that ended."""
    caplog.handler.removeFilter(_says_no_pool_ended)
    return caplog


def _says_no_pool_ended(record: logging.LogRecord) -> bool:
    return not hasattr(record, "pool_undisposed")


def pytest_report_header() -> list[str]:
    """Report the versions of the dependencies, and which copy of the package is tested."""
    names = ("sqlalchemy", "prometheus-client", "psycopg", "asyncpg", "greenlet")
    return [
        ", ".join(f"{name} {version(name)}" for name in names),
        f"sqlalchemy_pool_exporter: {_package()}, {_build()}",
    ]


def pytest_configure() -> None:
    """Refuse to test another build than REQUIRE_WHEEL (the installed one) and REQUIRE_BUILD say."""
    package = _package()
    if os.environ.get("REQUIRE_WHEEL") and not package.is_relative_to(Path(sys.prefix).resolve()):
        raise pytest.UsageError(f"the tests are to run on the built wheel and would run on {package}")
    wanted = os.environ.get("REQUIRE_BUILD", "")
    if wanted not in {"", _build()}:
        raise pytest.UsageError(f"the tests are to run {wanted} and would run {_build()}")


def pytest_collection_finish() -> None:
    """Freeze what collecting the tests left, so that no garbage collection of a test looks through it.

    It is 300,000 objects, which take 0.1 s each time, and hundreds of tests collect. At its first test Hypothesis warns
    if it finds nothing that refers to its source of random numbers, and among frozen objects it finds nothing: on
    CPython 3.14 and 3.15 a stateful test failed for that if it was the first one of a worker. So there is one before.
    """
    _first_of_hypothesis()
    gc.collect()
    gc.freeze()


@given(st.none())
def _first_of_hypothesis(_: None) -> None:
    """Do nothing."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are missing; fail it instead if REQUIRE_TOOLS is set."""
    tools = [tool for marker in item.iter_markers("requires") for tool in marker.args]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    reason = f"{', '.join(missing)} not found on the PATH"
    if os.environ.get("REQUIRE_TOOLS"):
        pytest.fail(f"{reason}, and REQUIRE_TOOLS is set", pytrace=False)
    pytest.skip(reason)


def _build() -> str:
    """Return whether the installed package is ``compiled`` or ``interpreted``."""
    is_compiled = any(_package().rglob(f"*_cy{EXTENSION_SUFFIXES[0]}"))
    return "compiled" if is_compiled else "interpreted"


def _package() -> Path:
    spec = find_spec("sqlalchemy_pool_exporter")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("sqlalchemy_pool_exporter is not installed: run `make test`")
    return Path(spec.origin).resolve().parent
