# SPDX-License-Identifier: Apache-2.0
"""Where the time that a client waits in pgbouncer shows: measured on a real one, with one connection to the server."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool

from sqlalchemy_pool_exporter import instrument
from tests.support.probed_server import Bouncer, ProbedServer
from tests.support.recipes import NAME, checkouts, run_recipe
from tests.support.samples import RegistrySamples, key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

pytestmark = [pytest.mark.newest, pytest.mark.requires("pgbouncer")]

WAIT = 4.0  # seconds that a client waits in pgbouncer; for nothing else, on a busy machine, does it take that long
OPTIONS = {"prepare_threshold": None, "application_name": NAME}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ProbedServer]:
    """Run a server for these tests alone, since one of them freezes it."""
    cluster = ProbedServer()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory)


@contextmanager
def pooler(cluster: ProbedServer, mode: str) -> Iterator[Bouncer]:
    """Run a pgbouncer with one connection to the server."""
    bouncer = Bouncer(cluster, pool_mode=mode, default_pool_size=1, stats_users="postgres")
    try:
        yield bouncer
    finally:
        bouncer.close()


def url_of(bouncer: Bouncer) -> str:
    return bouncer.dsn("postgres").replace("postgresql://", "postgresql+psycopg://")


def waiting(bouncer: Bouncer) -> int:
    """Return how many clients wait in pgbouncer for a connection to the server."""
    with psycopg.connect(bouncer.dsn("postgres", database="pgbouncer"), autocommit=True) as console:
        # The console has only the simple protocol.
        cursor = psycopg.ClientCursor(console, row_factory=dict_row).execute("SHOW POOLS")
        return sum(pool["cl_waiting"] for pool in cursor)


def while_taken(bouncer: Bouncer, act: Callable[[], None]) -> None:
    """Act while another client has the server's only connection, and give that back a while after act waits for it."""
    with psycopg.connect(bouncer.dsn("postgres"), prepare_threshold=None) as holder:
        holder.execute("SELECT 1")  # begins a transaction
        acting = threading.Thread(target=act)
        acting.start()
        assert eventually(lambda: waiting(bouncer) == 1)
        time.sleep(WAIT)
    acting.join()


class Waits:
    """An engine behind pgbouncer, and where its metrics show the wait."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._registry = engine, CollectorRegistry()
        instrument(engine, name=NAME, registry=self._registry)

    def ask(self) -> None:
        """Check out, and execute a statement."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def sums(self) -> dict[str, float]:
        samples = RegistrySamples(self._registry)
        return {
            name: samples.value(f"{name}_seconds_sum", NAME)
            for name in ("connect", "ping", "checkout_wait", "hold")
        }

    def during(self, act: Callable[[], None]) -> set[str]:
        """Return which of the times have the wait of what act does."""
        before = self.sums()
        act()
        added = {name: value - before[name] for name, value in self.sums().items()}
        return {name for name, value in added.items() if value >= WAIT}


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_the_wait_is_hold_time(mode: str, cluster: ProbedServer) -> None:
    """Pgbouncer lets a client in at once and makes its first statement wait, which the application's hold time has."""
    with pooler(cluster, mode) as bouncer:
        engine = create_engine(url_of(bouncer), poolclass=NullPool, connect_args=OPTIONS)
        waits = Waits(engine)
        waits.ask()
        assert {"hold"} == waits.during(lambda: while_taken(bouncer, waits.ask))


def test_what_a_listener_asks_is_checkout_time(cluster: ProbedServer) -> None:
    """A statement at each connect waits before the checkout ends: its wait has it, and the connect has not."""
    with pooler(cluster, "transaction") as bouncer:
        engine = create_engine(url_of(bouncer), poolclass=NullPool, connect_args=OPTIONS)

        @event.listens_for(engine, "connect")
        def set_path(connection: psycopg.Connection, _record: object) -> None:
            connection.execute("SELECT 1")
            connection.commit()

        waits = Waits(engine)
        waits.ask()
        assert {"checkout_wait"} == waits.during(lambda: while_taken(bouncer, waits.ask))


def test_a_pre_ping_waits_instead(cluster: ProbedServer) -> None:
    """With a pool of its own and pre-ping before pgbouncer, the ping waits for it."""
    with pooler(cluster, "transaction") as bouncer:
        engine = create_engine(url_of(bouncer), pool_size=1, pool_pre_ping=True, connect_args=OPTIONS)
        waits = Waits(engine)
        waits.ask()
        assert {"ping", "checkout_wait"} == waits.during(lambda: while_taken(bouncer, waits.ask))
        engine.dispose()


def test_the_first_client_waits_in_its_connect(cluster: ProbedServer) -> None:
    """Until pgbouncer has once reached the server, it lets nobody in: that wait is connect time."""
    with pooler(cluster, "transaction") as bouncer:
        waits = Waits(create_engine(url_of(bouncer), poolclass=NullPool, connect_args=OPTIONS))

        def freeze() -> None:
            assert cluster.process is not None
            cluster.process.send_signal(signal.SIGSTOP)
            acting = threading.Thread(target=waits.ask)
            acting.start()
            assert eventually(lambda: waiting(bouncer) == 1)
            time.sleep(WAIT)
            cluster.process.send_signal(signal.SIGCONT)
            acting.join()

        assert {"connect", "checkout_wait"} == waits.during(freeze)


def test_recipe(cluster: ProbedServer) -> None:
    """Each checkout of the recipe is a connect, and all go through one connection to the server."""
    program = """
        from sqlalchemy import text
        from examples.databases.pgbouncer import engine

        for _ in range(3):
            with engine.connect() as connection:
                print(*connection.execute(text("SELECT pg_backend_pid(), current_setting('application_name')")).one())
    """
    with pooler(cluster, "transaction") as bouncer:
        said, samples = run_recipe(program, DATABASE_URL=url_of(bouncer))
    pids, names = said.split()[::2], said.split()[1::2]
    assert (1, {NAME}) == (len(set(pids)), set(names))
    assert 3 == checkouts(samples) == samples[key("connects_total", pool=NAME)]
