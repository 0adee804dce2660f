# SPDX-License-Identifier: Apache-2.0
"""What the audit finds is shown: in the metrics of application and sidecar, on the board, and by the command."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import TargetError, environment, instrument, serve
from sqlalchemy_pool_exporter.board.moment import Moment
from sqlalchemy_pool_exporter.board.page import page
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.cli import main
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.held_connections import ServerLimits
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.fakes import connect
from tests.support.probed_sessions import Probed
from tests.support.samples import key, read_samples
from tests.support.segments import NOW, QUEUE, Process, processes
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus_client import Metric


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that makes processes, whose pools recycle nothing."""
    with processes(tmp_path) as make:

        def without_recycle(pool: str = "orders") -> Process:
            one = make(pool)
            one.block[layout.RECYCLE] = math.nan
            return one

        yield without_recycle


def recycling(make: Callable[..., Process], pool: str = "orders") -> Process:
    """Start a process whose pool recycles too early."""
    process = make(pool)
    process.block[layout.RECYCLE] = 60.0
    return process


def found(source: CollectorRegistry | Iterable[Metric]) -> set[tuple[str, str]]:
    """Return pool and rule of each finding in the metrics."""
    return {
        (dict(labels)["pool"], dict(labels)["rule"])
        for (name, labels), value in read_samples(source).items()
        if name == "sqlalchemy_pool_finding" and value == 1.0
    }


# -- metrics


def test_of_a_process() -> None:
    """An application without a directory shows its findings, until the pool is gone."""
    registry = CollectorRegistry()
    pools = QueuePool(connect, recycle=60), QueuePool(connect)
    with (
        instrument(pools[0], name="orders", registry=registry),
        instrument(pools[1], name="fine", registry=registry),
    ):
        assert found(registry) == {("orders", "recycle_short")}
    assert found(registry) == set()


def test_of_a_directory(tmp_path: Path, process: Callable[..., Process]) -> None:
    """The sidecar, and an application in that directory, show the findings of all processes."""
    # A pool of this process that has the name, and that an earlier test left, would be shown instead.
    recycling(process, "theirs")
    process("fine")
    collector = FleetCollector(Reader(tmp_path), worker_label=True, counters_per_worker=False)
    assert found(collector.collect()) == {("theirs", "recycle_short")}
    registry = CollectorRegistry()
    pool = QueuePool(connect, recycle=60)
    with instrument(pool, name="mine", registry=registry, directory=tmp_path):
        assert found(registry) == {("theirs", "recycle_short"), ("mine", "recycle_short")}


def test_of_a_probed_server(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A collector that knows the server finds what needs it."""
    process().block[layout.RECYCLE] = 1000.0
    servers = [Probed({}, limits=ServerLimits(97, 600.0, is_behind_pooler=False))]
    collector = FleetCollector(
        Reader(tmp_path),
        worker_label=False,
        counters_per_worker=False,
        servers=lambda: servers,
        monotonic=lambda: NOW,
        wall=lambda: 2 * NOW,
    )
    assert found(collector.collect()) == {("orders", "recycle_above_idle_limit")}


# -- what is recorded for the rules


def test_request_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument, or else the environment, tells the deadline, also to the pool after a dispose()."""
    registry = CollectorRegistry()
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_timeout=30)
    expected = {("orders", "timeout_beyond_deadline")}
    with instrument(engine, name="orders", registry=registry, request_deadline=10):
        assert found(registry) == expected
        engine.dispose()
        assert found(registry) == expected
    monkeypatch.setenv(environment.REQUEST_DEADLINE, "20")
    with instrument(engine, name="orders", registry=registry):
        assert found(registry) == expected
    with instrument(engine, name="orders", registry=registry, request_deadline=60):
        assert found(registry) == set()
    monkeypatch.setenv(environment.REQUEST_DEADLINE, "soon")
    with instrument(engine, name="orders", registry=registry):
        assert found(registry) == set()


def test_a_deadline_that_is_none() -> None:
    """A deadline that is no number of seconds is refused."""
    with pytest.raises(TargetError, match="request_deadline must be a number of seconds"):
        instrument(QueuePool(connect), registry=CollectorRegistry(), request_deadline=-1)


def engines(registry: CollectorRegistry, number: int, *, checkouts: int = 1, drops: bool = True) -> list[Any]:
    """Make engines of one name, and use each."""
    made = []
    for _ in range(number):
        engine = create_engine("sqlite://", poolclass=QueuePool)
        instrument(engine, name="orders", registry=registry)
        for _ in range(checkouts):
            with engine.connect():
                pass
        if drops:
            engine.dispose()
        else:
            made.append(engine)
        del engine
        gc.collect()
    return made


def test_an_engine_for_each_request() -> None:
    """Engines of one name that are dropped after one checkout are found, also while none lives."""
    registry = CollectorRegistry()
    engines(registry, 19)
    assert found(registry) == set()
    engines(registry, 1)
    assert found(registry) == {("orders", "engine_per_request")}


def test_an_engine_for_each_request_in_a_directory(tmp_path: Path) -> None:
    """So they are in a directory, and the next process, which makes one engine, has no finding."""
    registry = CollectorRegistry()
    sidecar = FleetCollector(Reader(tmp_path), worker_label=False, counters_per_worker=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environment.DIRECTORY, str(tmp_path))
        engines(registry, 20)
        assert found(registry) == found(sidecar.collect()) == {("orders", "engine_per_request")}


def test_engines_that_stay_or_work() -> None:
    """Twenty engines of one name that live, and twenty that each did some work, are no finding."""
    registry = CollectorRegistry()
    kept = engines(registry, 25, drops=False)
    assert found(registry) == set()
    for engine in kept:
        engine.dispose()
    other = CollectorRegistry()
    engines(other, 25, checkouts=10)
    assert found(other) == set()


def test_an_engine_that_is_disposed_of_again_and_again() -> None:
    """One engine whose pool is replaced after each job is no engine for each request."""
    registry = CollectorRegistry()
    engine = create_engine("sqlite://", poolclass=QueuePool)
    with instrument(engine, name="orders", registry=registry):
        for _ in range(30):
            with engine.connect():
                pass
            engine.dispose()
            gc.collect()
        assert found(registry) == set()


@pytest.mark.parametrize(("size", "is_found"), [(2, True), (3, False)])
def test_more_threads_than_connections(size: int, is_found: bool) -> None:
    """Three threads that ask at one moment are more than two connections, and not more than three."""
    registry = CollectorRegistry()
    go_on = threading.Event()

    def creator() -> Any:  # inside of connect()
        go_on.wait(60)
        return connect()

    pool = QueuePool(creator, pool_size=size, max_overflow=0)

    def use() -> None:
        pool.connect().close()

    with instrument(pool, name="orders", registry=registry):
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        pending = key("pending_checkouts", pool="orders")
        assert eventually(lambda: read_samples(registry)[pending] == 3)
        go_on.set()
        for thread in threads:
            thread.join()
        assert found(registry) == ({("orders", "pool_below_threads")} if is_found else set())


def test_a_synchronous_engine_in_a_task() -> None:
    """A task that checks out of a synchronous engine is found once the application has started; a thread is not."""
    registry = CollectorRegistry()
    engine = create_engine("sqlite://", poolclass=NullPool)

    def use() -> None:
        with engine.connect():
            assert found(registry) == set()

    def thread() -> None:
        one = threading.Thread(target=use)
        one.start()
        one.join()

    async def request() -> None:
        with engine.connect():
            assert found(registry) == {("orders", "sync_engine_in_loop")}

    async def live() -> None:
        for _ in range(60):
            await asyncio.create_task(asyncio.sleep(0))
        await asyncio.to_thread(use)
        for _ in range(60):
            await asyncio.to_thread(thread)
        await asyncio.create_task(request())

    with instrument(engine, name="orders", registry=registry):
        asyncio.run(live())


def test_a_synchronous_engine_in_a_thread_of_anyio() -> None:
    """Starlette calls an endpoint without ``async`` in such a thread, and that is right."""
    to_thread = pytest.importorskip("anyio.to_thread")
    registry = CollectorRegistry()
    engine = create_engine("sqlite://", poolclass=NullPool)

    def use() -> None:
        with engine.connect():
            assert found(registry) == set()

    async def request() -> None:
        await to_thread.run_sync(use)

    async def live() -> None:
        for _ in range(60):
            await asyncio.create_task(request())

    with instrument(engine, name="orders", registry=registry):
        asyncio.run(live())


# -- the board


def test_on_the_board(tmp_path: Path, process: Callable[..., Process]) -> None:
    """The board has the findings of the pools that are asked for, with their remedy, also beyond those it shows."""
    recycling(process)
    recycling(process, "billing")
    moment = Moment(Reader(tmp_path).read(), NOW, 2 * NOW, {})
    every = board(moment, Query(pools=1))
    assert [(one["pool"], one["rule"], one["severity"]) for one in every["findings"]] == [
        ("billing", "recycle_short", "info"),
        ("orders", "recycle_short", "info"),
    ]
    assert every["findings"][0]["text"] == "pool_recycle is 60 s"
    (one,) = board(moment, Query(names=frozenset(("orders",))))["findings"]
    assert one["pool"] == "orders"
    written = page(every, Query(), ())
    assert "pool_recycle is 60 s" in written
    assert "Use pool_pre_ping=True against dead connections" in written


# -- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["audit", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_command(tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are printed with their remedy, and the status is 1; it is 0 without any."""
    kept = recycling(process)
    status, out, err = run(capsys, tmp_path)
    assert (status, err) == (1, "")
    assert out.splitlines()[:3] == [
        "info      orders: recycle_short: pool_recycle is 60 s",
        "          Use pool_pre_ping=True against dead connections, and a pool_recycle of 30 minutes or more.",
        "1 finding in 1 pool in 1 process",
    ]
    assert "ask a sidecar that probes it for no_liveness_check" in out
    kept.block[layout.RECYCLE] = 1800.0
    status, out, err = run(capsys, tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("nothing found in 1 pool in 1 process\n")


def test_command_that_ignores_a_rule(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """Findings that are meant to be are left out; a rule that does not exist is a mistake of the call."""
    recycling(process)
    assert run(capsys, tmp_path, "--ignore", "recycle_short")[0] == 0
    assert run(capsys, tmp_path, "--ignore", "engine_per_request")[0] == 1
    status, _, err = run(capsys, tmp_path, "--ignore", "recycle")
    assert (status, err) == (2, "sqlalchemy-pool-exporter: no rule is called 'recycle'\n")


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_what_no_probe_tells(tmp_path: Path, dialect: str) -> None:
    """Pools are counted of whose server no probe tells; SQLite has none."""
    with processes(tmp_path) as make:
        make(info={**QUEUE, "dialect": dialect})
        make("gone").kill()
        fleet = Reader(tmp_path).read()

    def unprobed(*servers: Probed) -> int:
        return board(Moment(fleet, NOW, 2 * NOW, {}, servers))["pools_unprobed"]

    has_server = dialect == "postgresql"
    assert unprobed() == has_server
    assert unprobed(Probed({})) == has_server
    assert unprobed(Probed({}, limits=ServerLimits(97, 600.0, is_behind_pooler=False))) == 0


def test_command_at_an_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL, or a host and a port, is asked; JSON has the same findings."""
    registry = CollectorRegistry()
    pool = QueuePool(connect, recycle=60)
    with (
        instrument(pool, name="orders", registry=registry),
        serve(port=0, host="127.0.0.1", registry=registry) as server,
    ):
        status, out, err = run(capsys, f"http://127.0.0.1:{server.port}/")
        assert (status, err) == (1, "")
        *_, summary, unseen = out.splitlines()
        assert summary == "1 finding in 1 pool in 1 process"
        assert unseen.startswith(
            "no probe tells of the database server of 1 pool, so these rules could not look: no_l"
        )
        status, out, err = run(capsys, "--json", f"127.0.0.1:{server.port}")
        assert (status, err) == (1, "")
        answer = json.loads(out)
        assert [one["rule"] for one in answer["findings"]] == ["recycle_short"]
        assert (answer["pools"], answer["pools_unprobed"]) == (1, 1)


def test_command_without_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 2 if there is no directory, no answer, or no live process."""
    monkeypatch.delenv(environment.DIRECTORY, raising=False)
    assert run(capsys)[::2] == (
        2,
        f"sqlalchemy-pool-exporter: give a directory or a URL, or set {environment.DIRECTORY}\n",
    )
    assert run(capsys, tmp_path / "none")[0] == 2
    assert run(capsys, "http://127.0.0.1:1")[0] == 2
    assert run(capsys, "http://[")[0] == 2
    status, out, err = run(capsys, tmp_path)
    assert (status, out) == (2, "")
    assert err.endswith("no live process has a pool\n")


def test_command_with_a_file_that_cannot_be_read(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a finding, a process that cannot be read makes the answer unknown."""
    process()
    (tmp_path / "worker-009").write_bytes(b"x" * 9000)
    status, _, err = run(capsys, tmp_path)
    assert status == 2
    assert "1 file of processes cannot be read" in err


def test_command_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help says what the exit status means."""
    with pytest.raises(SystemExit) as caught:
        main(["audit", "--help"])
    assert caught.value.code == 0
    assert "exit status is 0 if none is found" in " ".join(capsys.readouterr().out.split())
