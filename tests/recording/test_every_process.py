# SPDX-License-Identifier: Apache-2.0
"""With a directory the endpoint of any process shows every process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument, serve, wsgi_app
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.fakes import connect
from tests.support.programs import PROLOGUE, run
from tests.support.samples import Exposition, key, read_samples
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter import Handle
    from tests.support.samples import Samples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks")

# What says how long something took, or which process answers.
OWN = ("exporter_segment_shared", "exporter_scrape_errors", "exporter_scrape_duration", "exporter_build_info")


_handles: list[Handle] = []


@pytest.fixture(autouse=True)
def _uninstrument() -> Iterator[None]:
    """Leave no pool instrumented: a registry does not show what another one of this process shows."""
    yield
    while _handles:
        _handles.pop().close()


def own_pool(registry: CollectorRegistry, directory: Path | None, name: str = "orders") -> Any:
    """Return an instrumented pool."""
    pool = QueuePool(connect, pool_size=2, max_overflow=1)
    _handles.append(instrument(pool, name=name, registry=registry, directory=directory))
    return pool


def steady(samples: Samples) -> Samples:
    """Return the samples without ages, and without what each endpoint says of itself.

    A moment is made from two clocks at each scrape, so it may differ by as much as a scrape is held up between them.
    """
    return {
        at: float(value > 0) if "timestamp" in at[0] else value
        for at, value in samples.items()
        if "est_" not in at[0] and not any(own in at[0] for own in OWN)
    }


def test_as_the_sidecar(tmp_path: Path) -> None:
    """The application shows the same series and values as the sidecar: all processes, also one that was killed."""
    registry = CollectorRegistry()
    pool = own_pool(registry, tmp_path)
    pool.connect().close()
    with Worker(tmp_path) as other:
        other.do("pool", "orders")
        other.do("cycle", "orders", 3)
        other.do("hold", "orders", 1)
        samples = read_samples(registry)
        assert samples[key("checkouts_total", pool="orders")] == 5
        assert samples[key("capacity", pool="orders")] == 6
        assert samples[key("connections", pool="orders", worker="001", state="in_use")] == 1
        sidecar = FleetCollector(Reader(tmp_path), worker_label=True, counters_per_worker=False)
        assert steady(read_samples(sidecar.collect())) == steady(samples)
        other.kill()
        assert read_samples(registry)[key("checkouts_total", pool="orders")] == 5


def test_every_process_gives_the_same_answer(tmp_path: Path) -> None:
    """No counter depends on which process is asked, so a scrape that reaches them in turn sees no reset."""
    with Worker(tmp_path) as one, Worker(tmp_path) as two:
        for times, worker in ((2, one), (5, two)):
            worker.do("pool", "orders")
            worker.do("cycle", "orders", times)
        assert [worker.do("sample", "checkouts_total", "orders") for worker in (one, two, one)] == [7] * 3


def test_endpoint_without_a_pool_of_its_own(tmp_path: Path) -> None:
    """A process that serves and has no pool yet shows the others'."""
    with Worker(tmp_path) as other:
        other.do("pool", "of-other-processes")
        registry = CollectorRegistry()
        wsgi_app(registry, directory=tmp_path)
        assert Exposition(registry).value("checkouts_total", "of-other-processes") == 0
        registry = CollectorRegistry()
        with serve(0, "127.0.0.1", registry=registry, directory=tmp_path):
            assert Exposition(registry).value("checkouts_total", "of-other-processes") == 0


def test_pool_that_is_not_in_the_directory(tmp_path: Path) -> None:
    """A pool of this process in memory is shown, too, without disturbing the sums of the same name."""
    registry = CollectorRegistry()
    with Worker(tmp_path) as other:
        other.do("pool", "orders")
        other.do("cycle", "orders", 3)
        pool = own_pool(registry, tmp_path / "missing")
        pool.connect().close()
        wsgi_app(registry, directory=tmp_path)
        exposition = Exposition(registry)
        assert exposition.value("checkouts_total", "orders") == 3
        assert exposition.value("checkouts_total", "orders", worker=f"pid{os.getpid()}") == 1
        assert exposition.value("exporter_segment_shared", "orders") == 0


def of_directories(caplog: pytest.LogCaptureFixture, path: Path) -> list[str]:
    """Return what was logged of the directories of a test: a pool that another test left may say that it ended."""
    return [message for message in caplog.messages if str(path) in message]


def test_directory_that_cannot_be_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that the system refuses costs no scrape, and is named; one that is missing yet is not."""
    registry = CollectorRegistry()
    pool = own_pool(registry, None)
    pool.connect().close()
    wsgi_app(registry, directory=tmp_path / "missing")
    assert Exposition(registry).value("checkouts_total", "orders") == 1
    assert of_directories(caplog, tmp_path) == []
    wsgi_app(registry, directory=tmp_path / ("a" * 300))
    assert Exposition(registry).value("checkouts_total", "orders") == 1
    (message,) = of_directories(caplog, tmp_path)
    assert message.endswith("is left out: File name too long")


def test_several_directories_in_one_registry(tmp_path: Path) -> None:
    """Counts of a name in two directories are added up, and the workers of both are told apart."""
    registry = CollectorRegistry()
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    with Worker(directories[0]) as one, Worker(directories[1]) as two:
        for times, worker in ((2, one), (5, two)):
            worker.do("pool", "of-other-processes")
            worker.do("cycle", "of-other-processes", times)
        for directory in directories:
            wsgi_app(registry, directory=directory)
        samples = read_samples(registry)
        assert samples[key("checkouts_total", pool="of-other-processes")] == 7
        assert samples[key("exporter_workers", state="live")] == 2
        workers = {dict(labels).get("worker") for name, labels in samples if name.endswith("_connections")}
        assert workers == {"a/000", "b/000"}


@pytest.mark.parametrize("places", ["ab", "a ", " a", "aa"])
def test_default_names_in_several_places(tmp_path: Path, places: str) -> None:
    """Pools of one default name that differ are told apart also between directories, memory, and other registries.

    All metrics of a pool have the same label.
    """
    registries = [CollectorRegistry()] * 2 if places != "aa" else [CollectorRegistry(), CollectorRegistry()]
    for place in places.strip():
        (tmp_path / place).mkdir(exist_ok=True)
    pools: tuple[Any, ...] = (QueuePool(connect, pool_size=1), QueuePool(connect, pool_size=2))
    for pool, place, registry in zip(pools, places, registries, strict=True):
        where = tmp_path / place if place.strip() else None
        _handles.append(instrument(pool, registry=registry, directory=where))
    pools[0].connect().close()
    sampled = [read_samples(registry) for registry in registries]
    for pool, samples, place in zip(pools, sampled, places, strict=True):
        label = f"QueuePool-{pool.size()}+10"
        assert samples[key("checkouts_total", pool=label)] == 2 - pool.size()
        assert samples[key("capacity", pool=label)] == pool.size() + 10
        shared = {dict(at[1])["pool"] for at in samples if "segment_shared" in at[0]}
        assert (label in shared) == bool(place.strip())
        assert key("checkouts_total", pool="QueuePool") not in samples
        assert "QueuePool" not in shared


def test_directories_of_one_name(tmp_path: Path) -> None:
    """The workers of two directories whose last parts are alike are told apart."""
    registry = CollectorRegistry()
    for parent in "ab":
        directory = tmp_path / parent / "pools"
        directory.mkdir(parents=True)
        own_pool(registry, directory)
    families = list(registry.collect())
    found = [(sample.name, *sample.labels.items()) for family in families for sample in family.samples]
    assert len(found) == len(set(found))
    workers = {dict(at[1]).get("worker") for at in read_samples(registry)} - {None}
    assert workers == {f"{tmp_path}/{parent}/pools/000" for parent in "ab"}


def test_several_registries_with_one_directory(tmp_path: Path) -> None:
    """A registry shows no pool that this process shows in another registry."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    pools = [own_pool(registry, tmp_path, name) for registry, name in zip(registries, "ab", strict=True)]
    for registry, own, other in zip(registries, "ab", "ba", strict=True):
        exposition = Exposition(registry)
        assert exposition.value("checkouts_total", own) == 0
        assert exposition.get("checkouts_total", other) is None
    del pools


def test_a_sidecar_shows_the_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting keeps the application silent about pools that a sidecar sees, and only about those."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_SIDECAR", "1")
    registry = CollectorRegistry()
    pools = [own_pool(registry, tmp_path), own_pool(registry, tmp_path / "missing", "in memory")]
    exposition = Exposition(registry)
    assert exposition.get("checkouts_total", "orders") is None
    assert exposition.get("capacity", "orders") is None
    assert exposition.value("exporter_segment_shared", "orders") == 1
    assert exposition.value("checkouts_total", "in memory") == 0
    assert "\n# TYPE sqlalchemy_pool_capacity gauge" in exposition.text
    del pools[1]


def test_concurrent_scrapes(tmp_path: Path) -> None:
    """Scrapes in several threads at once all see everything."""
    registry = CollectorRegistry()
    pool = own_pool(registry, tmp_path)
    pool.connect().close()
    seen: list[float] = []

    def scrape() -> None:
        seen.extend(Exposition(registry).value("checkouts_total", "orders") for _ in range(20))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1.0] * 80


def test_forked_while_a_scrape_runs(tmp_path: Path) -> None:
    """A child that is forked during a scrape scrapes, too: it waits for no lock of its parent."""
    result = run(
        """
        from prometheus_client.registry import Collector

        pool = QueuePool(Connection)
        instrument(pool, name="p", registry=registry, directory=sys.argv[1])
        pool.connect().close()
        collector = next(iter(registry._collector_to_names))
        samples()
        collector._process.lock.acquire()
        pid = os.fork()
        if pid == 0:
            pool.connect().close()
            os._exit(int(samples()["checkouts_total"]))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        str(tmp_path),
        prologue=PROLOGUE,
    )
    assert result.stdout == "2\n", result.stderr


def test_forks_without_a_directory() -> None:
    """A process that forked after it instrumented says so, in a metric and once in the log, if it has no directory."""
    result = run(
        """
        import logging
        logging.basicConfig(stream=sys.stdout, format="%(message).60s")
        pool = QueuePool(Connection)
        instrument(pool, name="p", registry=registry)

        def forked():
            (family,) = [f for f in registry.collect() if f.name.endswith("forked_processes")]
            return family.samples[0].value

        print(forked())
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                os._exit(int(forked()))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            print(forked())
        """,
        prologue=PROLOGUE,
    )
    said = "this process forked 1 others since it instrumented its first"
    assert [line[:60] for line in result.stdout.splitlines()] == ["0.0", said, "1.0", "2.0"], result.stderr


def test_no_forks_metric_with_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a directory forked processes are shown, so nothing warns of them."""
    registry = CollectorRegistry()
    pool = own_pool(registry, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert key("exporter_forked_processes") not in read_samples(registry)
    assert [message for message in caplog.messages if "fork" in message] == []
    del pool
