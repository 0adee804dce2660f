# SPDX-License-Identifier: Apache-2.0
"""Measure the memory that instrumentation adds to a pool, an open connection and many checkouts."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import instrument

from . import fake
from .report import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

_POOLS = 50
_CONNECTIONS = 500


def run(*, quick: bool) -> Iterator[Table]:
    """Yield one table: the bytes that instrumentation adds, as ``tracemalloc`` counts them."""
    checkouts = 2_000 if quick else 20_000
    with _traced():
        rows = (
            ("a pool of the default size (5, overflow 10)", _of_a_pool(pool_size=5, max_overflow=10)),
            (f"a pool of {_CONNECTIONS}", _of_a_pool(pool_size=_CONNECTIONS, max_overflow=0)),
            ("a pool without a limit", _of_a_pool(pool_size=5, max_overflow=-1)),
            ("an open connection", _of_a_connection()),
            (f"{checkouts:,} checkouts and returns", _of_checkouts(checkouts)),
        )
    yield Table(
        title="Memory",
        note=(
            f"What `tracemalloc` counts more with instrumentation than without: the mean over {_POOLS} pools, and over "
            f"{_CONNECTIONS} connections. A pool has one table at first, whatever its limits, which is part of the "
            "pool's figure; each 255 open connections more need another one of 8 kB."
        ),
        columns=("of", "bytes"),
        rows=tuple((name, f"{count:,.0f}") for name, count in rows),
    )


@contextmanager
def _traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _used() -> int:
    while gc.collect():
        pass  # finalizers create more garbage
    return tracemalloc.get_traced_memory()[0]


def _of_a_pool(*, pool_size: int, max_overflow: int) -> float:
    registry = CollectorRegistry()
    engines = [fake.engine(pool_size=pool_size, max_overflow=max_overflow) for _ in range(_POOLS + 1)]
    with ExitStack() as stack:
        # The first pool also allocates what all pools of a registry share.
        stack.enter_context(instrument(engines[0], name="first", registry=registry))
        before = _used()
        for number, engine in enumerate(engines[1:]):
            stack.enter_context(instrument(engine, name=f"pool-{number}", registry=registry))
        return (_used() - before) / _POOLS


def _of_a_connection() -> float:
    bare, watched = (fake.engine(pool_size=_CONNECTIONS, max_overflow=0) for _ in range(2))
    with instrument(watched, name="benchmark", registry=CollectorRegistry()):
        without = _of_connections(bare)
        return (_of_connections(watched) - without) / _CONNECTIONS


def _of_connections(engine: Engine) -> int:
    engine.connect().close()  # allocate what only the first connection allocates
    before = _used()
    connections = [engine.raw_connection() for _ in range(_CONNECTIONS)]
    used = _used() - before
    for connection in connections:
        connection.close()
    engine.dispose()
    return used


def _of_checkouts(count: int) -> float:
    bare, watched = fake.engine(), fake.engine()
    with instrument(watched, name="benchmark", registry=CollectorRegistry()):
        # Let shared dicts shrink first, so that their size is not counted as the pool's.
        _of_cycles(bare, count)
        without = _of_cycles(bare, count)
        return _of_cycles(watched, count) - without


def _of_cycles(engine: Engine, count: int) -> int:
    for _ in range(100):
        engine.raw_connection().close()
    before = _used()
    for _ in range(count):
        engine.raw_connection().close()
    used = _used() - before
    engine.dispose()
    return used
