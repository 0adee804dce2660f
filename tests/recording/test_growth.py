# SPDX-License-Identifier: Apache-2.0
"""Memory does not grow with the number of checkouts, connections or handles."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from functools import cache, partial
from itertools import count, pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import (
    QueuePool,
)

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.segment.identity import read
from tests.support.database import Database, Socket
from tests.support.diary import PACKAGE
from tests.support.samples import Exposition, RegistrySamples

pytestmark = pytest.mark.usefixtures("little_to_collect")

TIMES = 60


@pytest.mark.parametrize(
    "what", ["engines", "named engines", "disposals", "shared dialect", "closed handles"]
)
def test_nothing_grows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines made, disposed of, collected or un-instrumented again and again leave no memory, and few series."""
    # Tracing the memory of many names takes long, so fewer of those that are gone stay.
    most_ended = 8
    for module in ("segment.pages", "segment.ledger", "recording.own_pools"):
        monkeypatch.setattr(f"sqlalchemy_pool_exporter.{module}.MOST_ENDED", most_ended)
    registry = CollectorRegistry()
    keeper = Database().engine(pool_pre_ping=True)
    name = instrument(keeper, name="keeper", registry=registry).name
    numbers = count()

    def once() -> None:
        if what == "disposals":
            keeper.connect().close()
            keeper.dispose()
            return
        if what == "shared dialect":
            make: Any = Database().connect
            pool = QueuePool(make, dialect=keeper.dialect, pre_ping=True)
            instrument(pool, registry=registry)
            pool.connect().close()
            return
        engine = Database().engine()
        handle = instrument(
            engine, name=f"n{next(numbers)}" if what == "named engines" else None, registry=registry
        )
        engine.connect().close()
        if what == "closed handles":
            handle.close()

    # A filter of tracemalloc matches patterns again for each frame, which takes longer than all else.
    @cache
    def is_ours(file: str) -> bool:
        return file.startswith(f"{PACKAGE}/")

    def ours(times: int) -> int:
        for _ in range(times):
            once()
        gc.collect()
        RegistrySamples(registry)  # folds the counts of pools that were collected
        read.cache_clear()  # of bounded size
        return sum(
            trace.size
            for trace in tracemalloc.take_snapshot().traces
            if any(is_ours(frame.filename) for frame in trace.traceback)
        )

    logging.getLogger("sqlalchemy_pool_exporter").disabled = True
    tracemalloc.start(6)
    try:
        # What else is known of names that are gone is tidied up after as many.
        rounds = (72, *3 * (4 * (most_ended + 1),)) if what == "named engines" else 4 * (TIMES,)
        taken = [ours(times) for times in rounds]
    finally:
        tracemalloc.stop()
        logging.getLogger("sqlalchemy_pool_exporter").disabled = False
    # A leak shows in every round: 36 times at least 60 bytes, the size of a weak reference. A dictionary resizes in
    # one round only, so the minimum ignores it.
    assert min(after - before for before, after in pairwise(taken)) < TIMES * 30
    samples = RegistrySamples(registry).samples
    names = {dict(labels)["pool"] for _, labels in samples if "pool" in dict(labels)}
    assert name in names
    assert len(names) <= 1 + most_ended
    assert {dict(labels)["pool"] for key, labels in samples if key.endswith("pre_ping")} == {name}


def test_a_name_can_be_used_again() -> None:
    """When a pool is collected its counters stay, and a new pool of the name counts on."""
    registry = CollectorRegistry()
    for number in range(1, 4):
        engine = Database().engine()
        assert instrument(engine, name="again", registry=registry).name == "again"
        engine.connect().close()
        assert Exposition(registry).value("checkouts_total", "again") == number
        del engine
        gc.collect()
        assert Exposition(registry).value("checkouts_total", "again") == number
        assert Exposition(registry).get("instances", "again") is None


def test_a_reused_address_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a new connection reuses the id() of a closed one, its close is still counted with its own reason."""
    database = Database()
    make: Any = partial(Socket, database)
    # Only sometimes does the third connection reuse the first one's address; patch id() so that it always does.
    address = {1: 1, 2: 2, 3: 1}

    def id_(thing: Any) -> int:
        return address[thing.serial] if isinstance(thing, Socket) else id(thing)

    monkeypatch.setattr("sqlalchemy_pool_exporter.recording.connection_table.id", id_, raising=False)
    pool, registry = QueuePool(make, pool_size=2, recycle=3600), CollectorRegistry()
    name = instrument(pool, registry=registry).name
    invalidated, old = pool.connect(), pool.connect()
    record: Any = old._connection_record
    record.starttime -= 7200
    old.close()
    invalidated.invalidate()
    new = pool.connect()
    assert record.dbapi_connection.serial == 3
    pool.dispose()
    new.close()
    pool.dispose()
    counted = Exposition(registry).counters(name)
    assert (1, 1, 1) == tuple(counted[f"closes.{reason}"] for reason in ("error", "recycle", "dispose"))
    assert not database.open
