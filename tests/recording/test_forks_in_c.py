# SPDX-License-Identifier: Apache-2.0
"""A child that was forked in C, as uWSGI forks: no hook of Python runs in it, and its parent's block stays as it is."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import FORK_IN_C, run
from tests.support.segments import counted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("little_to_collect"),
    pytest.mark.skipif(sys.platform != "linux", reason="MADV_WIPEONFORK"),
]

# What a child does first with what it inherited: two connections that are out, one that is idle.
ACTS = {
    "a checkout": "pool.connect().close()",
    "a return": "held.pop().close()",
    "an invalidation": "held.pop().invalidate()",
    "a soft invalidation": "held.pop().invalidate(soft=True)",
    "a detach": "held.pop().detach()",
    "a collected proxy": "held.pop(); gc.collect()",
    "a collected record": "del record.fairy_ref, record; held.clear(); pool._pool.queue.clear(); gc.collect()",
    "a dispose": "pool.dispose()",
    "a recreate": "pool.recreate().connect().close()",
    "a scrape": "samples()",
    "a close of the handle": "handle.close()",
    "a second call of instrument()": "instrument(pool)",
    "another pool": "instrument(QueuePool(Connection), name='q', registry=registry, directory=directory)",
    "a collected pool": "del pool, handle, held, idle, record; gc.collect()",
    "a close of a detached connection": "detached.close()",
    "the end": "sys.exit",
    "a failing connect": "pool._creator = None; held.append(pool.connect()); pool.connect()",
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Do each act as the first of another child; return by act which bytes of its parent's file then differ."""
    result = run(
        """
        import json

        def block():
            with (directory / "worker-000").open("rb") as file:
                return file.read(2**16)

        def act():
            global pool, handle, held, idle, record, detached
            exec(code, globals())

        root = directory
        for number, (name, code) in enumerate(json.loads(sys.argv[2]).items()):
            # Each act has a parent of its own, which nothing has happened to: a fork, as an interpreter starts slowly.
            if waited := os.fork():
                os.waitpid(waited, 0)
                continue
            directory = root / str(number)
            directory.mkdir()
            pool = QueuePool(Connection, pool_size=4, recycle=3600)
            handle = instrument(pool, name="p", registry=registry, directory=directory)
            held = [pool.connect(), pool.connect()]
            detached = pool.connect()
            detached.detach()
            idle = pool.connect()
            idle.close()
            record = held[0]._connection_record
            before = block()
            try:
                in_child(act)
            except AssertionError:
                assert "_creator" in code
            after = block()
            changed = [at for at in range(len(before)) if before[at] != after[at] and at // 8 != FORKED_WORD]
            print(json.dumps({name: changed}), flush=True)
            os._exit(0)
        """,
        str(tmp_path_factory.mktemp("acts")),
        json.dumps(ACTS),
        prologue=FORK_IN_C,
    )
    sys.stderr.write(result.stderr)
    return {act: at for line in result.stdout.splitlines() for act, at in json.loads(line).items()}


@pytest.mark.parametrize("act", ACTS)
def test_the_first_act_of_a_child(act: str, changed: dict[str, list[int]]) -> None:
    """Whatever a child does first, its parent's file stays as it is, to the byte that says that the parent forked."""
    assert changed.get(act) == []


def test_all_checkouts_are_counted(tmp_path: Path) -> None:
    """Three children with four threads each and their parent count every checkout, each in a file of its own."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=2, max_overflow=10)
        # SQLAlchemy 2.0.0 cannot connect for the first time in several threads unless the event has a listener.
        event.listen(pool, "connect", lambda *_: None)
        instrument(pool, name="p", registry=registry, directory=directory)
        children = [fork_in_c() for _ in range(3) if os.getpid() == parent] if (parent := os.getpid()) else []
        threads = [
            threading.Thread(target=lambda: [pool.connect().close() for _ in range(500)]) for _ in range(4)
        ]
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if 0 in children:
            os._exit(0)
        print([os.waitpid(child, 0)[1] for child in children])
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "[0, 0, 0]\n", result.stderr
    # A child that ends before another begins leaves its file to it.
    assert sum(counted(tmp_path, "p").values()) == 4 * 2000, result.stderr


def test_forked_inside_of_a_connect(tmp_path: Path) -> None:
    """A creator that forks returns in both processes: each counts its checkout, and nobody stays pending."""
    result = run(
        """
        child = None

        def creator():
            global child
            if child is None:
                child = fork_in_c()
            return Connection()

        pool = QueuePool(creator, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        first = pool.connect()
        second = [pool.connect() for _ in range(1)]
        now = own()
        assert now["pending_checkouts"] == 0, now
        assert now["connections"]["in_use"] == 2, now
        assert now["checkouts_total"] == 2, now
        first.close()
        if child == 0:
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "0\n", result.stderr
    assert counted(tmp_path, "p") == {"000": 2, "001": 2}


def test_forked_inside_of_a_connect_that_fails(tmp_path: Path) -> None:
    """A creator that forks and fails in the child leaves nobody pending in either process."""
    result = run(
        """
        child = None

        def creator():
            global child
            if child is None:
                child = fork_in_c()
                if child == 0:
                    raise OSError
            return Connection()

        pool = QueuePool(creator, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        try:
            pool.connect().close()
        except OSError:
            assert child == 0
        now = own()
        assert now["pending_checkouts"] == 0, now
        if child == 0:
            assert now["checkouts_total"] == 0, now
            pool.connect().close()
            assert own()["checkouts_total"] == 1
            os._exit(0)
        assert now["checkouts_total"] == 1, now
        print(os.waitpid(child, 0)[1])
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "0\n", result.stderr
    assert counted(tmp_path, "p") == {"000": 1, "001": 1}


def test_forked_while_another_thread_instruments(tmp_path: Path) -> None:
    """A child forked while a thread of its parent is inside of ``instrument()`` waits for no lock of the parent."""
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
        in_child(lambda: instrument(QueuePool(Connection), name="b", registry=registry).close())
        go_on.set()
        thread.join()
        print("done")
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "done\n", result.stderr


def test_forked_while_another_thread_logs(tmp_path: Path) -> None:
    """A child forked while a thread of its parent writes a log line does not hang if it has something to log itself."""
    result = run(
        """
        import logging
        logging.basicConfig()
        pool = QueuePool(Connection, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        arrived, go_on = threading.Event(), threading.Event()

        def log():
            with logging.root.handlers[0].lock:
                arrived.set()
                go_on.wait()

        thread = threading.Thread(target=log)
        thread.start()
        arrived.wait()
        (directory / "worker-000").unlink()
        directory.rmdir()
        in_child(lambda: pool.connect().close())
        go_on.set()
        thread.join()
        print("done")
        """,
        str(tmp_path / "segments"),
        prologue=FORK_IN_C + "directory.mkdir()",
    )
    assert result.stdout == "done\n", result.stderr


@pytest.mark.parametrize("before", [True, False])
def test_the_hook_of_uwsgi(tmp_path: Path, before: bool) -> None:
    """A worker of uWSGI takes its file in uWSGI's hook, once, and a hook that was there before runs as well."""
    result = run(
        """
        import types
        sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")
        if sys.argv[2] == "True":
            uwsgi.post_fork_hook = lambda: print("before", flush=True)
        for name in "pq":
            instrument(QueuePool(Connection), name=name, registry=registry, directory=directory)
        in_child(lambda: (uwsgi.post_fork_hook(), print(sorted(os.listdir(directory)), flush=True)))
        """,
        str(tmp_path),
        str(before),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "before\n" * before + "['worker-000', 'worker-001']\n", result.stderr


def test_serve_in_the_master_of_uwsgi(tmp_path: Path) -> None:
    """The master starts no thread; each worker, forked or not, starts one, once; a closed server starts none."""
    result = run(
        """
        import types
        from sqlalchemy_pool_exporter import serve
        sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")
        uwsgi.worker_id = uwsgi.mule_id = lambda: 0

        def show(what):
            print(what, threading.active_count() - 1, flush=True)

        def start():
            uwsgi.post_fork_hook()
            uwsgi.post_fork_hook()

        server, closed = serve(0, "127.0.0.1"), serve(0, "127.0.0.1")
        closed.close()
        show("master")
        in_child(lambda: (start(), show("forked")))
        start()
        show("first")
        server.close()
        show("closed")
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "master 0\nforked 1\nfirst 1\nclosed 0\n", result.stderr


def test_forks_of_forks(tmp_path: Path) -> None:
    """Forks of forks, in C and by Python in turn, have a file each."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        pool.connect().close()
        for fork in (fork_in_c, os.fork, fork_in_c, fork_in_c):
            child = fork()
            if child:
                status = os.waitpid(child, 0)[1]
                break
            pool.connect().close()
            status = 0
        if child:
            print(status, flush=True)
        os._exit(status)
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "0\n" * 4, result.stderr
    assert counted(tmp_path, "p") == dict.fromkeys(("000", "001", "002", "003", "004"), 1)


def test_a_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """Once a child has used a pool, its parent's file is free when the parent dies."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        pool.connect().close()
        noticed, notices = os.pipe()
        lives, alive = os.pipe()

        def live():
            return [worker.number for worker in Reader(directory).read().live]

        if fork_in_c() == 0:
            signal.alarm(60)
            os.close(alive)
            pool.connect().close()
            os.write(notices, b".")
            os.read(lives, 1)  # until the parent ends
            while "000" in (now := live()):  # the kernel closes the files of a process one after another
                time.sleep(0.01)
            print(now, flush=True)
            os._exit(0)
        os.read(noticed, 1)
        print(live(), flush=True)
        os._exit(0)
        """,
        str(tmp_path),
        prologue=FORK_IN_C,
    )
    assert result.stdout == "['000', '001']\n['001']\n", result.stderr
    assert counted(tmp_path, "p") == {"000": 1, "001": 1}


# Before the package is imported.
OLD_KERNEL = """
import mmap

class Old(mmap.mmap):
    def madvise(self, *_):
        raise OSError(22, "Invalid argument")

mmap.mmap = Old
"""


@pytest.mark.parametrize("fork", ["fork_in_c", "os.fork"])
def test_without_the_wiped_page(tmp_path: Path, fork: str) -> None:
    """Where the kernel cannot wipe a page, Python's hooks tell, and so does the first scrape."""
    result = run(
        f"""
        pool = QueuePool(Connection, pool_size=2)
        instrument(pool, name="p", registry=registry, directory=directory)
        if {fork}() == 0:
            samples()
            pool.connect().close()
            os._exit(0)
        print(os.wait()[1])
        """,
        str(tmp_path),
        prologue=OLD_KERNEL + FORK_IN_C,
    )
    assert result.stdout == "0\n", result.stderr
    assert counted(tmp_path, "p") == {"000": 0, "001": 1}
