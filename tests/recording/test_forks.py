# SPDX-License-Identifier: Apache-2.0
"""A forked child starts with a block of its own, whatever its parent was doing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.pool_case import Case
from tests.support.programs import PROLOGUE, run
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_in_the_middle() -> None:
    """A child forked while other threads connect counts its own checkouts exactly; the parent's counts stay."""
    result = run(
        """
        pool = QueuePool(lambda: (arrived.release(), go_on.wait(), Connection())[-1], pool_size=30)
        arrived, go_on = threading.Semaphore(0), threading.Event()
        go_on.set()
        pool.connect().close()
        instrument(pool, name="p", registry=registry)
        go_on.clear()
        arrived = threading.Semaphore(0)
        held = pool.connect()
        others = [threading.Thread(target=lambda: pool.connect().close()) for _ in range(20)]
        for other in others:
            other.start()
        for _ in others:
            arrived.acquire()

        def child():
            # Not the parent's: a thread that was about to wait may have had its lock, and does not exist here.
            global arrived, go_on
            arrived, go_on = threading.Semaphore(0), threading.Event()
            go_on.set()
            assert samples()["pending_checkouts"] == 0
            mine = pool.recreate()
            held = [mine.connect() for _ in range(20)]
            now = samples()
            assert now["connections.in_use"] == 20, now
            assert now["checkouts_total"] == 20, now
            held.clear()
            now = samples()
            assert (now["connections.in_use"], now["pending_checkouts"]) == (0, 0), now

        def fork():
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    child()
                    status = 0
                except BaseException:
                    import traceback
                    traceback.print_exc()
                finally:
                    os._exit(status)
            statuses.append(os.waitpid(pid, 0)[1])

        statuses = []
        forker = threading.Thread(target=fork)
        forker.start()
        forker.join()
        assert samples()["pending_checkouts"] == 20
        go_on.set()
        for other in others:
            other.join()
        now = samples()
        assert (now["connections.in_use"], now["checkouts_total"], now["checkins_total"]) == (1, 21, 20), now
        print(statuses)
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "[0]\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_with_a_hook_of_the_applications_own(tmp_path: Path) -> None:
    """A fork hook of the application that runs before ours and uses the pool does not change the parent's block."""
    result = run(
        """
        from pathlib import Path
        from sqlalchemy_pool_exporter.segment.directory import Reader

        pool = QueuePool(Connection, pool_size=4)
        os.register_at_fork(after_in_child=lambda: (pool.recreate().connect().close(), held.pop().close()))
        instrument(pool, name="p", registry=registry, directory=sys.argv[1])
        held = [pool.connect(), pool.connect()]

        def parent():
            (worker,) = [worker for worker in Reader(Path(sys.argv[1])).read().workers if worker.number == "000"]
            return repr(worker.pools[0].snapshot)

        before = parent()
        assert before.startswith("Snapshot"), before
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        print(parent() == before)
        """,
        str(tmp_path),
        prologue=PROLOGUE,
    )
    assert result.stdout == "True\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_while_another_thread_instruments() -> None:
    """A child forked while another thread of the parent is in ``instrument()`` can instrument a pool itself."""
    result = run(
        """
        arrived, go_on = threading.Event(), threading.Event()

        class Slow(CollectorRegistry):
            def register(self, collector):
                arrived.set()
                go_on.wait()
                super().register(collector)

        thread = threading.Thread(target=lambda: instrument(QueuePool(Connection), name="a", registry=Slow()))
        thread.start()
        arrived.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            handle = instrument(QueuePool(Connection), name="b", registry=registry)
            handle.close()
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        go_on.set()
        thread.join()
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "0\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_instrumented_only_in_the_child() -> None:
    """A child instruments a pool though its parent instrumented none; its counts survive the pool's first dispose()."""
    result = run(
        """
        pid = os.fork()
        if pid == 0:
            pool = QueuePool(Connection, pool_size=4)
            instrument(pool, name="p", registry=registry)
            pool.connect().close()
            pool.dispose()
            pool.connect().close()
            now = samples()
            print(*(now[key] for key in ("checkouts_total", "checkins_total", "connects_total")), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "2.0 2.0 2.0\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_starts_at_nothing(server: Server, tmp_path: Path) -> None:
    """A child's counts start at 0 and count its own checkouts; the parent's metrics do not change."""
    case = Case("psycopg", server, tmp_path)
    with case.log:
        engine = case.start(pool_size=2)
        held = engine.connect()
        engine.connect().close()
        before = case.now()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child
            status = 1
            try:
                inherited = case.now().counters(case.name), case.open()
                engine.dispose(close=False)
                with engine.connect():
                    inside = case.open()
                counted = case.now().counters(case.name)
                os.write(writer, repr((inherited, inside, counted)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as stream:
            inherited, inside, counted = eval(stream.read())  # noqa: S307 - written by the child above
        assert os.waitpid(pid, 0)[1] == 0
        assert inherited == ({}, 0)
        assert inside == 1
        assert {key: value for key, value in counted.items() if not key.endswith("_count")} == {
            "checkouts": 1,
            "checkins": 1,
            "connects": 1,
        }
        after = case.now()
        assert after.counters(case.name) == before.counters(case.name)
        assert metric_state(after, case.name) == pool_state(engine.pool)
        held.close()
        engine.dispose()
