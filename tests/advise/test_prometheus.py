# SPDX-License-Identifier: Apache-2.0
"""Advice from a real Prometheus: each pool in its busiest window."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine

from sqlalchemy_pool_exporter import instrument, serve
from sqlalchemy_pool_exporter.advise.prometheus import Prometheus as Source
from sqlalchemy_pool_exporter.advise.prometheus import Span
from sqlalchemy_pool_exporter.cli import main
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.top.client import Client, Credentials
from tests.support.prometheus import Prometheus, scraping
from tests.support.sidecar import run
from tests.support.traffic import using

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server

pytestmark = [pytest.mark.newest, pytest.mark.requires("prometheus")]

BUSY_SECONDS, QUIET_SECONDS, WINDOW = 5.0, 7.0, "4s"


def test_prometheus(
    server: Server, application_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The busiest window of the range counts, and not its mean; a pool name of any characters is found."""
    registry = CollectorRegistry()
    engine = create_engine(
        server.url("postgresql+psycopg", application_name=application_name), pool_size=2, max_overflow=1
    )
    with (
        instrument(engine, name='or"ders', registry=registry),
        serve(host="127.0.0.1", port=0, registry=registry) as endpoint,
        Prometheus(scraping({"shop": [f"127.0.0.1:{endpoint.port}"]}), tmp_path) as prometheus,
    ):
        prometheus.wait_for("sqlalchemy_pool_instances")
        with using(engine, hold=0.02, pause=0.01):
            time.sleep(BUSY_SECONDS)
            busy_until = time.time()
        count = registry.get_sample_value("sqlalchemy_pool_checkouts_total", {"pool": 'or"ders'})
        assert count is not None
        prometheus.wait_until(
            lambda: any(one.value == count for one in prometheus.query("sqlalchemy_pool_checkouts_total")),
            "the last checkout",
        )
        time.sleep(QUIET_SECONDS)
        options = ("advise", "--prometheus", prometheus.url, "--range", "60s", "--window", WINDOW)
        done = run(*options, "--match", 'job="shop"', "--json")
        assert 0 == done.returncode, done.stderr
        assert 1 == main([*options, "--match", 'job="other"'])
        assert 'knows no pool in the last 1 min with {job="other"}' in capsys.readouterr().err
        assert 1 == main([*options, "--match", "job="])
        assert "refuses a query: " in capsys.readouterr().err
        assert 0 == main([*options, "--pool", 'or"ders'])
        assert "each pool in its busiest 4.0 s of the last 1 min" in capsys.readouterr().out
    engine.dispose()
    (pool,) = json.loads(done.stdout)["pools"]
    observed = pool["observed"]
    assert ('or"ders', 4.0, 1.0, 1.0) == (
        pool["pool"],
        observed["seconds"],
        observed["instances"],
        observed["most_instances"],
    )
    # The mean of the busy time, within what a window that does not coincide with it loses; not that of a minute.
    busy_rate = count / BUSY_SECONDS
    assert 0.5 * busy_rate < observed["arrivals_per_second"] < 1.6 * busy_rate
    assert observed["end"] < busy_until + 6.0
    assert 0.02 <= observed["hold_seconds"]["mean"] < 0.5
    assert 2 == pool["now"]["pool_size"]
    assert pool["advice"]["pool_size"] >= 1
    assert observed["connect_seconds_mean"] > 0.0


def test_pool_that_has_ended(
    server: Server, application_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool whose process ended within its busiest window is known; a window need not be whole seconds."""
    registry = CollectorRegistry()
    engine = create_engine(
        server.url("postgresql+psycopg", application_name=application_name), pool_size=2, max_overflow=1
    )
    with (
        instrument(engine, name="batch", registry=registry),
        serve(host="127.0.0.1", port=0, registry=registry) as endpoint,
        Prometheus(scraping({"shop": [f"127.0.0.1:{endpoint.port}"]}), tmp_path) as prometheus,
    ):
        prometheus.wait_for("sqlalchemy_pool_instances")
        with using(engine, hold=0.02, pause=0.01):
            time.sleep(3.0)
        count = registry.get_sample_value("sqlalchemy_pool_checkouts_total", {"pool": "batch"})
        prometheus.wait_until(
            lambda: any(one.value == count for one in prometheus.query("sqlalchemy_pool_checkouts_total")),
            "the last checkout",
        )
        endpoint.close()
        prometheus.wait_until(lambda: not prometheus.query("sqlalchemy_pool_instances"), "its end")
        source = Source(prometheus.url, Credentials())
        (one,) = source.watch(Span(60.0, 30.0)).observations
        asked: list[str] = []
        post = Client.post

        def post_and_note(client: Client, path: str, parameters: dict[str, str]) -> tuple[int, bytes]:
            asked.append(parameters["query"])
            return post(client, path, parameters)

        monkeypatch.setattr(Client, "post", post_and_note)
        (short,) = source.watch(Span(60.0, 2.5)).observations
    engine.dispose()
    assert ("batch", 1.0, 2.0, 1.0) == (one.pool, one.instances, one.size, one.max_overflow)
    assert count == pytest.approx(one.checkouts, rel=0.5)
    assert short.seconds == 2.5
    assert short.checkouts > 0.0
    # Not those of three seconds in two and a half. Of how many that are, Prometheus only makes an estimate.
    windows = {window for query in asked for window in re.findall(r"(?:rate|increase)\(\S*\[(\w+)\]", query)}
    assert windows == {"2500ms", "60s"}


@pytest.mark.parametrize(
    "answer",
    [
        "{}",
        "null",
        '{"status": "success"}',
        '{"status": "success", "data": null}',
        '{"status": "success", "data": {"result": [1]}}',
        '{"status": "success", "data": {"result": [{"metric": {"pool": "a"}, "values": []}]}}',
        '{"status": "success", "data": {"result": [{"metric": {"pool": "a"}, "value": [1, "1"]}]}}',
    ],
)
def test_no_prometheus(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that looks like that of a Prometheus and is none is an error that says so."""
    monkeypatch.setattr(Client, "post", lambda *_: (200, answer.encode()))
    with pytest.raises(BoardError, match="answers with something else than Prometheus does"):
        Source("http://localhost", Credentials()).watch(Span(60.0, 30.0))
