# SPDX-License-Identifier: Apache-2.0
"""The records of held connections: the application's side from the segments, and the server's from the probes."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.held_connections import (
    Blocker,
    HeldConnection,
    Session,
    held_connections,
    held_states,
)
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.identity import Variant
from sqlalchemy_pool_exporter.segment.server_process import ServerProcess, packed, unpacked
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW, QUEUE, Process, leasing, new_block, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


ACTIVE = Session("active", "", 3.0, 4.0, 3.0, "app", "", ())


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Make processes that share a directory."""
    with processes(tmp_path) as make:
        yield make


def opened(process: Process, row: int, pid: int, *, since: float = 0.0, site: str = "") -> None:
    """Open a connection, and check it out if ``since`` is given."""
    at = layout.CONNECTIONS_AT + layout.ROW * row
    process.block[at], process.block[at + layout.HELD_SINCE] = 900.0, since
    process.block[at + layout.SERVER_PID] = packed(pid, 5000)
    if site:
        entry = process.storage.site(site)
        assert entry is not None
        process.block[at + layout.SITE] = entry.number


def records(directory: Path, *servers: Probed) -> list[HeldConnection]:
    return held_connections(Reader(directory).read(), now=NOW, servers=servers)


def test_without_a_probe_the_applications_side_is_there(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    """Each connection that is checked out has a record, the longest hold first; the server's side is unknown."""
    one = process()
    opened(one, 0, 41, since=990.0, site="shop:pay:88")
    opened(one, 1, 42)
    opened(one, 2, 0, since=-980.0)
    worker = Reader(tmp_path).read().live[0]
    pid = str(os.getpid()) if worker.facts.process else ""
    expected = HeldConnection("orders", worker.number, pid, "other", "", "", 20.0, None, 0)
    assert [
        expected,
        dataclasses.replace(expected, site="shop:pay:88", held_seconds=10.0, server_pid=41),
    ] == records(tmp_path)


def test_both_sides_are_joined(process: Callable[..., Process], tmp_path: Path) -> None:
    """A record says what the server says of the session, how old that is, and which of our connections blocks it."""
    one, two = process(), process("billing")
    opened(one, 0, 41, since=990.0)
    opened(two, 0, 51, since=980.0, site="bill:run:7")
    opened(two, 1, 52)
    waits = dataclasses.replace(
        ACTIVE, state="waiting_for_lock", wait_event="Lock:tuple", blocked_by=(51, 52, 99, 7, 0)
    )
    holds, foreign = (
        dataclasses.replace(ACTIVE, state="idle_in_transaction"),
        dataclasses.replace(ACTIVE, application="psql"),
    )
    main = Probed({41: waits, 51: holds, 52: ACTIVE, 99: foreign})
    other = Probed(main.sessions, pools=("billing",), database="bill", asked_at=NOW - 1.0)
    billing, orders = records(tmp_path, main, other)
    assert ("bill", "idle_in_transaction", 1.0) == (
        billing.database,
        billing.server_state,
        billing.asked_seconds_ago,
    )
    assert ("main", "waiting_for_lock", "Lock:tuple", 3.0, 4.0, 3.0, 2.0) == (
        orders.database,
        orders.server_state,
        orders.wait_event,
        orders.state_seconds,
        orders.transaction_seconds,
        orders.statement_seconds,
        orders.asked_seconds_ago,
    )
    ours = {"pool": "billing", "worker": billing.worker, "pid": billing.pid}
    assert orders.blocked_by == (
        Blocker(51, "idle_in_transaction", "app", site="bill:run:7", **ours),
        Blocker(52, "active", "app", **ours),  # idle in its pool, with a lock of the session
        Blocker(99, "active", "psql"),
        Blocker(7, "unknown", ""),
        Blocker(0, "unknown", ""),
    )


def test_processes_of_other_servers_are_other_processes(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    """A blocker is not taken for a connection to another server, nor for one whose session is not certain."""
    one, two = process(), process("billing")
    opened(one, 0, 41, since=990.0)
    opened(one, 1, 51, since=995.0)
    opened(two, 0, 51, since=980.0, site="bill:run:7")
    waits = dataclasses.replace(ACTIVE, blocked_by=(51,))
    main = Probed({41: waits, 51: ACTIVE}, uncertain={51})
    found = records(tmp_path, main, Probed({51: ACTIVE}, pools=("billing",), identity="another"))
    assert (Blocker(51, "active", "app"),) == found[1].blocked_by
    assert ["active", "active", "unknown"] == [one.server_state for one in found]


def test_pools_of_one_default_name_that_differ(tmp_path: Path) -> None:
    """A database can name a pool by its label; its name means all pools that have it, and no other label."""
    variants = [Variant(kind, 5.0, 10.0, 30.0, None, pre_ping=False) for kind in ("QueuePool", "NullPool")]
    with leasing() as lease:
        for number, variant in enumerate(variants):
            info = {**QUEUE, "pool_class": variant.pool_class}
            block = new_block(lease(tmp_path), "orders@db", info, variant).doubles
            block[layout.ACTIVE] = block[layout.CONNECTIONS_USED] = 1.0
            at = layout.CONNECTIONS_AT
            block[at], block[at + layout.HELD_SINCE] = 900.0, 990.0
            block[at + layout.SERVER_PID] = packed(41 + number)
        by_name = Probed({41: ACTIVE, 42: ACTIVE}, pools=("orders@db",))
        labels = {one.pool: one.server_pid for one in records(tmp_path)}
        assert {"orders@db-QueuePool": 41, "orders@db-NullPool": 42} == labels
        assert ["main", "main"] == [one.database for one in records(tmp_path, by_name)]
        by_label = Probed({}, pools=("orders@db-NullPool",), database="null")
        assert {"orders@db-QueuePool": "main", "orders@db-NullPool": "null"} == {
            one.pool: one.database for one in records(tmp_path, by_name, by_label)
        }
        fleet = Reader(tmp_path).read()
        assert {"orders@db-NullPool": {"unknown": 1}} == held_states(fleet, [by_label])


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        ((4321, 40000), (4321, 40000)),
        ((2**32 - 1, 65535), (2**32 - 1, 65535)),
        ((4321, 0), (4321, 0)),
        ((4321, -1), (4321, 0)),
        ((4321, 70000), (4321, 0)),
        ((0, 40000), (0, 0)),
        ((-4321, 40000), (0, 0)),  # a pooler makes up any number
        ((2**32, 40000), (0, 0)),
    ],
)
def test_number_of_a_server_process(process: tuple[int, int], expected: tuple[int, int]) -> None:
    """The number in a row tells process and port; it is one that a reader accepts."""
    number = packed(*process)
    assert ServerProcess(*expected) == unpacked(number)
    assert 0.0 <= number < 2.0**49
    assert ServerProcess(0, 0) == unpacked(-1.0)


def test_only_some(process: Callable[..., Process], tmp_path: Path) -> None:
    """A caller can ask for some pools, and for the longest holds; a blocker is named all the same."""
    one, two = process(), process("billing")
    opened(one, 0, 41, since=990.0)
    opened(one, 1, 42, since=995.0)
    opened(two, 0, 51, since=980.0, site="bill:run:7")
    waits = dataclasses.replace(ACTIVE, state="waiting_for_lock", blocked_by=(51,))
    probed = Probed({41: waits, 42: ACTIVE, 51: ACTIVE}, pools=("orders", "billing"))
    (found,) = held_connections(Reader(tmp_path).read(), now=NOW, servers=[probed], pools={"orders"}, most=1)
    assert (41, "bill:run:7") == (found.server_pid, found.blocked_by[0].site)
