# SPDX-License-Identifier: Apache-2.0
"""Reading an endpoint or a directory: what happened between two reads, or since the start."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from sqlalchemy_pool_exporter import instrument, serve
from sqlalchemy_pool_exporter.advise.source import Directory, Endpoint, since_start, watch
from sqlalchemy_pool_exporter.advise.table import growth
from sqlalchemy_pool_exporter.cli import main
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.top.client import Credentials
from tests.support import ports
from tests.support.sidecar import Sidecar, run
from tests.support.traffic import table, using
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlalchemy_pool_exporter.advise.table import Table
    from tests.support.pg import Server


@contextmanager
def served(server: Server, application_name: str) -> Iterator[tuple[Engine, str]]:
    """Serve the pool of an engine of two connections; yield the engine and the URL."""
    registry = CollectorRegistry()
    engine = create_engine(
        server.url("postgresql+psycopg", application_name=application_name), pool_size=2, max_overflow=1
    )
    with (
        instrument(engine, name="orders", registry=registry),
        serve(host="127.0.0.1", port=0, registry=registry) as endpoint,
    ):
        yield engine, f"http://127.0.0.1:{endpoint.port}"
    engine.dispose()


def use(engine: Engine, times: int) -> None:
    for _ in range(times):
        with engine.connect():
            pass


def test_endpoint(server: Server, application_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what happened between the two reads counts, and the progress is on the standard error stream."""
    with served(server, application_name) as (engine, url):
        use(engine, 50)
        clock = iter([0.0, 0.0, 12.0, 20.0])
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            use(engine, 100)

        watched = watch(Endpoint(url, Credentials()), 10.0, wait=wait, clock=lambda: next(clock))
    (one,) = watched.observations
    assert ([10.0], 20.0, 100.0, 5.0) == (waits, one.seconds, one.checkouts, one.rate)
    assert 100.0 == one.holds.number == one.waits.number
    assert (2.0, 1.0, 3.0, "queue") == (one.size, one.max_overflow, one.capacity, one.kind)
    # None was opened meanwhile; the mean is that of those before.
    assert one.connects.mean > 0.0
    assert f"watching {url}: 10 s left" in capsys.readouterr().err
    assert [] == watched.servers


def test_command(server: Server, application_name: str) -> None:
    """The real command says of a real endpoint what its pool does."""
    with served(server, application_name) as (engine, url), using(engine, hold=0.01, pause=0.02):
        done = run("advise", url, "--for", "1500ms", "--json", "--wait", "20ms")
    assert (0, "") == (done.returncode, done.stderr.partition("watching")[0])
    answer = json.loads(done.stdout)
    (pool,) = answer["pools"]
    assert 5 < pool["observed"]["arrivals_per_second"] < 50
    assert 0.01 <= pool["observed"]["hold_seconds"]["mean"] < 0.2
    # Little's law: of one caller a third of the time, and never more than one.
    assert 0.1 < pool["observed"]["in_use"] <= 1.1
    assert pool["advice"]["pool_size"] >= 1
    assert pool["advice"]["predicted_wait_seconds"] <= 0.02
    assert (0.02, ["orders"]) == (answer["objective"]["wait_seconds"], answer["pools_of_unknown_servers"])
    assert any("pool_size=" in reason for reason in pool["reasons"])


def test_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes of a directory are told apart: the busiest is known, and the size is for one of them."""
    first, second = Worker(tmp_path), Worker(tmp_path)
    try:
        for worker in (first, second):
            worker.do("pool", "orders")

        def wait(_: float) -> None:
            first.do("cycle", "orders", 90)
            second.do("cycle", "orders", 10)

        clock = iter([0.0, 0.0, 12.0, 10.0])
        (one,) = watch(Directory(tmp_path), 10.0, wait=wait, clock=lambda: next(clock)).observations
        assert (2.0, 100.0, 10.0, 9.0) == (one.instances, one.checkouts, one.rate, one.rate_of_one)
        assert frozenset(["QueuePool"]) == one.classes
        (one,) = since_start(Directory(tmp_path)).observations
        assert 100.0 == one.checkouts
        assert one.seconds > 0.0
        assert 0 == main(["advise", str(tmp_path), "--since-start", "--pool", "orders"])
        assert "orders: pool_size=" in capsys.readouterr().out
    finally:
        first.kill()
        second.kill()


@pytest.mark.parametrize("other", [(-1, 0), (2, -1)], ids=["NullPool", "max_overflow=-1"])
def test_pools_of_which_some_have_no_limit(
    tmp_path: Path, other: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit of one process is no limit of all, and is not spread over those that have none."""
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        first.do("pool", "orders", 1, 0)
        second.do("pool", "orders", *other)
        for worker in (first, second):
            worker.do("cycle", "orders", 10)
        (one,) = since_start(Directory(tmp_path)).observations
        assert (2.0, 20.0, None, None) == (one.instances, one.checkouts, one.capacity, one.max_overflow)
        assert 0 == main(["advise", str(tmp_path), "--since-start", "--json"])
        assert 0 == main(["advise", str(tmp_path), "--since-start"])
    assert "what processes that have ended did before counts, too" in capsys.readouterr().out


class Text:
    """Scrapes that are given as text."""

    name = "here"

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)

    def scrape(self) -> Table:
        return table(next(self._texts))


def test_started_later_than_now() -> None:
    """Another machine's clock may be ahead: a time that is negative is no time to take a mean of."""
    text = """
sqlalchemy_pool_instances{pool="orders"} 1
sqlalchemy_pool_exporter_worker_info{worker="000",started="2999-01-01T00:00:00Z"} 1
"""
    with pytest.raises(BoardError, match="were started later than now by this machine's clock"):
        since_start(Text(text))


def test_numbers_that_are_none() -> None:
    """NaN and infinity are no samples, and a pool of which there is none is not live."""
    text = 'sqlalchemy_pool_instances{{pool="orders"}} 1\nsqlalchemy_pool_instances{{pool="other"}} {}\n'
    for value in ("NaN", "+Inf", "-Inf", "0", "-1"):
        scrapes = Text(*[text.format(value)] * 2)
        assert ["orders"] == [one.pool for one in watch(scrapes, 0.0).observations]
    infinite = f'{text.format(0)}sqlalchemy_pool_timeout_seconds{{pool="orders"}} +Inf\n'
    (one,) = watch(Text(infinite, infinite), 0.0).observations
    assert one.timeout_seconds is None


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_progress_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice does not depend on a standard error stream."""
    text = 'sqlalchemy_pool_instances{pool="orders"} 1\n'
    monkeypatch.setattr(sys, "stderr", Closed())
    assert 1 == len(watch(Text(text, text), 0.001).observations)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "__stderr__", None)
    assert 1 == len(watch(Text(text, text), 0.001).observations)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it without a traceback."""

    def interrupt(_: Directory) -> Table:
        raise KeyboardInterrupt

    monkeypatch.setattr(Directory, "scrape", interrupt)
    assert 130 == main(["advise", str(tmp_path)])


def test_static_pool(tmp_path: Path) -> None:
    """A pool without a size is told by its class."""
    registry = CollectorRegistry()
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with (
        instrument(engine, name="one", registry=registry),
        serve(host="127.0.0.1", port=0, registry=registry) as endpoint,
    ):
        use(engine, 2)
        done = run("advise", f"127.0.0.1:{endpoint.port}", "--for", "100ms")
    engine.dispose()
    assert 0 == done.returncode, done.stderr
    assert "one: nothing to change (now StaticPool)" in done.stdout
    assert not list(tmp_path.iterdir())


def test_probed_server(tmp_path: Path, server: Server) -> None:
    """A sidecar that probes the server says whether the processes fit into its connections."""
    config = tmp_path / "exporter.yaml"
    config.write_text(json.dumps({"databases": [{"name": "db", "dsn_env": "THE_DSN", "pools": ["orders"]}]}))
    directory = tmp_path / "pools"
    directory.mkdir()
    worker = Worker(directory)
    try:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 5)
        with Sidecar("--config", config, "--directory", directory, THE_DSN=server.dsn("probe")) as sidecar:
            assert eventually(lambda: sidecar.value("database_up", database="db") == 1)
            done = run("advise", sidecar.url, "--for", "100ms", "--json")
        assert 0 == done.returncode, done.stderr
        (found,) = json.loads(done.stdout)["servers"]
        assert (["orders"], True) == (found["pools"], found["fits"])
        assert 0 < found["usable"] < found["max_connections"] - found["reserved_connections"]
    finally:
        worker.kill()


def test_restart_between_the_reads() -> None:
    """Counters that go back are an error that says why, and no advice; new ones count from 0."""
    text = 'sqlalchemy_pool_checkouts_total{{pool="orders"}} {}\nsqlalchemy_pool_size{{pool="orders"}} {}\n'
    grown = growth(table(""), table(text.format(5, 2)), "here")
    assert [5.0] == [sample.value for sample in grown["checkouts_total"]]
    assert "size" not in grown
    with pytest.raises(BoardError, match="here: sqlalchemy_pool_checkouts_total went back between two reads"):
        growth(table(text.format(5, 2)), table(text.format(4, 2)), "here")


def test_two_processes_that_answer_in_turn() -> None:
    """What one process has counted and another has not is no growth; those that share a directory have the same."""
    text = 'sqlalchemy_pool_checkouts_total{{pool="orders"}} {}\nprocess_start_time_seconds {}\n'
    first, second = table(text.format(5, 1e9)), table(text.format(9, 1e9 + 0.01))
    with pytest.raises(BoardError, match="here: two reads were answered by two processes"):
        growth(first, second, "here")
    assert 4.0 == growth(first, table(text.format(9, 1e9)), "here").total("checkouts_total")
    shared = 'sqlalchemy_pool_exporter_workers{state="live"} 2\n'
    assert 4.0 == growth(first, table(text.format(9, 2e9) + shared), "here").total("checkouts_total")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--wait", "soon"], 2, "'soon' is no time, such as 50ms"),
        (["--range", "1d", "."], 2, "--range is of --prometheus"),
        (["--prometheus", "http://a", "."], 2, "not both"),
        (["--prometheus", "http://a", "--for", "1s"], 2, "--for and --since-start are of"),
        (["--share", "1.5", "."], 2, "'1.5' is no number from 0.5 to 0.999"),
        (["no/such/directory"], 1, "'no/such/directory' is no directory"),
        (["ftp://localhost"], 1, "the URL is none of HTTP"),
        ([], 1, "give a directory or a URL"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    status: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong option is exit status 2, and what cannot be read 1; both say what is wrong."""
    monkeypatch.delenv("SQLALCHEMY_POOL_EXPORTER_DIR", raising=False)
    try:
        found = main(["advise", *arguments])
    except SystemExit as error:
        found = error.code  # type: ignore[assignment]  # argparse exits with a number
    assert status == found
    assert text in capsys.readouterr().err


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port where nothing listens, an empty directory, and an endpoint without pools are errors that say so."""
    port = ports.free_port()
    for arguments in (
        ["advise", f"127.0.0.1:{port}"],
        ["advise", "--prometheus", f"http://127.0.0.1:{port}"],
    ):
        assert 1 == main(arguments)
        assert f"no answer from http://127.0.0.1:{port}: " in capsys.readouterr().err
    assert 1 == main(["advise", str(tmp_path)])
    assert "no live process has a pool" in capsys.readouterr().err
    with serve(host="127.0.0.1", port=0, registry=CollectorRegistry()) as endpoint:
        url = f"http://127.0.0.1:{endpoint.port}"
        assert 1 == main(["advise", url])
        assert "no live process has a pool" in capsys.readouterr().err
        assert 1 == main(["advise", "--prometheus", url])
        assert f"{url} answers 405" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has the exit statuses and an example."""
    with pytest.raises(SystemExit):
        main(["advise", "--help"])
    said = capsys.readouterr().out
    for text in ("exit status:", "examples:", "--for 60s", "--prometheus URL", "--since-start"):
        assert text in said
