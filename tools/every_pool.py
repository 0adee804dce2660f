# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for the tests of others: it instruments every pool, and writes how each test ended.

``python -m pytest -p every_pool --outcomes FILE --instrument`` (``tools`` must be on the path). After each test it
compares what is recorded of each pool that lives with what the pool itself says.
"""

from __future__ import annotations

import functools
import json
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# The pools of engines are left to ``instrument_all()``, and those that take the place of another to its hooks.
_NOT_MADE_DIRECTLY = {"create_engine", "recreate"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.addoption("--outcomes", type=Path, required=True)
    parser.addoption("--instrument", action="store_true")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin, after the tests have chosen their SQLAlchemy."""
    every_pool = EveryPool() if config.getoption("--instrument") else None
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes"), every_pool))


class EveryPool:
    """Instruments every pool. Mutable state: the pools, those that are being made, and what is wrong."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - all of them only if pools are instrumented
        from sqlalchemy.engine import Engine  # noqa: PLC0415
        from sqlalchemy.pool import Pool  # noqa: PLC0415
        from sqlalchemy.util import langhelpers  # noqa: PLC0415

        from sqlalchemy_pool_exporter import instrument, instrument_all  # noqa: PLC0415

        self._registry = CollectorRegistry()
        self._instrument = functools.partial(instrument, registry=self._registry)
        self._making: list[int] = []
        self.pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._reported: weakref.WeakSet[Any] = weakref.WeakSet()
        self.number = 0
        # SQLAlchemy reads the arguments of a pool's class from the code of its constructor.
        original: Any = langhelpers._inspect_func_args  # noqa: SLF001 - has no public name
        langhelpers._inspect_func_args = lambda function: original(_unwrapped(function))  # noqa: SLF001
        for kind in (Pool, *_subclasses(Pool)):
            if "__init__" in vars(kind):
                kind.__init__ = self._wrapped(kind.__init__)
        Engine.__init__ = self._wrapped_of_engine(Engine.__init__)  # type: ignore[method-assign]
        instrument_all(registry=self._registry)

    def _wrapped_of_engine(self, original: Any) -> Any:
        from sqlalchemy.engine import URL  # noqa: PLC0415
        from sqlalchemy.pool import Pool  # noqa: PLC0415

        @functools.wraps(original)
        def __init__(engine: Any, pool: Any, dialect: Any, url: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(engine, pool, dialect, url, *args, **kwargs)
            # A mock of a URL, which instrument_all() sees nothing of, and that has no name for the pool.
            if isinstance(pool, Pool) and not isinstance(url, URL):
                self._instrument(pool)

        return __init__

    def _wrapped(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(pool: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - the name that is shown
            is_outermost = id(pool) not in self._making
            self._making.append(id(pool))
            try:
                original(pool, *args, **kwargs)
            finally:
                self._making.remove(id(pool))
            if is_outermost:
                self.pools.add(pool)
                self.number += 1
                if sys._getframe(1).f_code.co_name not in _NOT_MADE_DIRECTLY:  # noqa: SLF001 - the documented way
                    self._instrument(pool)

        return __init__

    def totals(self) -> dict[str, float]:
        """Return how many pools were instrumented, and what was recorded of them."""
        totals: dict[str, float] = {"pools": self.number, "checkouts": 0.0, "recording_faults": 0.0}
        for family in self._registry.collect():
            for sample in family.samples:
                for key in totals:
                    if sample.name in {
                        f"sqlalchemy_pool_{key}_total",
                        f"sqlalchemy_pool_exporter_{key}_total",
                    }:
                        totals[key] += sample.value
        return totals

    def differences(self) -> Iterator[str]:
        """Yield what is recorded otherwise than a pool says itself, once for each pool."""
        from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED  # noqa: PLC0415

        for pool in self.pools - self._reported:
            if not hasattr(pool, "checkedout"):
                continue
            own = (pool.checkedout(), pool.checkedin())
            hooks = INSTRUMENTED.hooks_of(pool)
            if hooks is None:
                if any(own):  # else its engine was never made
                    self._reported.add(pool)
                    yield f"{type(pool).__name__} is not instrumented"
                continue
            values: dict[str, Any] = dict(hooks.recorder.values())
            connections = values["connections"]
            recorded = (connections["in_use"], connections["idle"] + values["empty_slots"])
            if own != recorded:
                self._reported.add(pool)
                yield f"{type(pool).__name__}: {recorded} in use and idle, the pool says {own}"


class Outcomes:
    """Writes how each test ended. Mutable state: that."""

    def __init__(self, path: Path, every_pool: EveryPool | None) -> None:
        self._path, self._every_pool = path, every_pool
        self._tests: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._different: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a part of a test ended."""
        test, outcome = report.nodeid, report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "skipped"
        if outcome != "passed" or test not in self._tests:
            self._tests[test] = outcome if self._tests.get(test) != "failed" else "failed"
        if outcome == "failed":
            self._texts[test] = self._texts.get(test, "") + report.longreprtext

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Compare the pools that live with what is recorded of them."""
        if self._every_pool is not None and (found := list(self._every_pool.differences())):
            self._different[nodeid] = found

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        said = {"tests": self._tests, "texts": self._texts, "different": self._different}
        if self._every_pool is not None:
            from sqlalchemy_pool_exporter.about import hot_path  # noqa: PLC0415

            said |= {"hot_path": hot_path(), "totals": self._every_pool.totals()}
        self._path.write_text(json.dumps(said))


def _unwrapped(function: Any) -> Any:
    return getattr(function, "__wrapped__", function)


def _subclasses(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)
