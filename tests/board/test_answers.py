# SPDX-License-Identifier: Apache-2.0
"""``/api/v1/pools`` of both endpoints: what each shows, its headers, and who may read it."""

from __future__ import annotations

import asyncio
import json
import os
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import environment, instrument, serve
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.segments import a_pool
from tests.support.web_files import PASSWORD, basic, hashed, users
from tests.support.wire import Gated, Numbers, ask, serving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from sqlalchemy_pool_exporter.recording.endpoint import Server
    from tests.support.boards import Directory

API = "/api/v1/pools"


class Got(NamedTuple):
    """The answer of the application's endpoint."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def board(self) -> Any:
        return json.loads(self.body)


def get(server: Server, path: str = API, method: str = "GET") -> Got:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Got(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
    finally:
        connection.close()


# --------------------------------------------------------- the application's


def test_own_pools() -> None:
    """Without a directory the application's endpoint shows the pools of its process, with who holds what."""
    registry, pool = CollectorRegistry(), a_pool()
    with (
        instrument(pool, name="orders", registry=registry, sites=True),
        serve(0, "127.0.0.1", registry=registry) as server,
    ):
        connection = pool.connect()
        got = get(server)
        connection.close()
    assert (200, "application/json; charset=utf-8") == (got.status, got.headers["content-type"])
    assert ("no-store", "nosniff") == (got.headers["cache-control"], got.headers["x-content-type-options"])
    (shown,) = got.board["pools"]
    assert ("orders", 1) == (shown["name"], shown["state"]["in_use"])
    (held,) = got.board["held"]
    assert (f"pid{os.getpid()}", str(os.getpid()), "MainThread") == (
        held["worker"],
        held["pid"],
        held["holder"],
    )
    assert ":test_own_pools:" in held["site"]


def test_only_the_pools_of_the_registry() -> None:
    """A pool that another registry shows is not on the board, as it is not in the metrics."""
    registry, shown, other = CollectorRegistry(), a_pool(), a_pool()
    with (
        instrument(shown, name="orders", registry=registry),
        instrument(other, name="other", registry=CollectorRegistry()),
        serve(0, "127.0.0.1", registry=registry) as server,
    ):
        assert ["orders"] == [pool["name"] for pool in get(server).board["pools"]]


def test_every_process(directory: Directory, tmp_path: Path) -> None:
    """With a directory the application's endpoint shows every process in it, and its own pools in no directory."""
    directory.process("billing").hold(1.0)
    registry, shared, own = CollectorRegistry(), a_pool(), a_pool()
    with (
        instrument(shared, name="billing", registry=registry, directory=tmp_path),
        instrument(own, name="memory", registry=registry),
        serve(0, "127.0.0.1", registry=registry, directory=tmp_path) as server,
    ):
        found = {pool["name"]: pool for pool in get(server).board["pools"]}
    assert {"billing", "memory"} == found.keys()
    assert {"000", "001"} == {worker["worker"] for worker in found["billing"]["workers"]}
    assert [f"pid{os.getpid()}"] == [worker["worker"] for worker in found["memory"]["workers"]]


def test_beside_a_sidecar(directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sidecar shows the directory, the application's endpoint says so and shows none of its pools."""
    monkeypatch.setenv(environment.SIDECAR, "1")
    directory.process("billing")
    with serve(0, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path) as server:
        board = get(server).board
    assert [] == board["pools"]
    assert "a sidecar shows the pools" in board["note"]


def test_bad_parameters_and_methods() -> None:
    """A wrong parameter is a 400 that names it; HEAD has no body; other methods are refused."""
    with serve(0, "127.0.0.1", registry=CollectorRegistry()) as server:
        bad = get(server, f"{API}?held=x")
        head = get(server, method="HEAD")
        post = get(server, method="POST")
    assert (400, b"400: held is a number from 0 to 10000\n") == (bad.status, bad.body)
    assert (200, b"") == (head.status, head.body)
    assert 405 == post.status


# ---------------------------------------------------------------- the sidecar


def test_sidecar(directory: Directory) -> None:
    """The sidecar answers with what it reads, and filters by the query."""
    directory.process("billing")
    directory.process("orders")

    async def scenario() -> None:
        async with serving(Numbers(), moments=directory.moments) as endpoint:
            every, one = await ask(endpoint, API), await ask(endpoint, f"{API}?pool=orders")
            bad = await ask(endpoint, f"{API}?held=x")
            head = await ask(endpoint, API, method="HEAD")
        assert (200, "application/json; charset=utf-8") == (every.status, every.headers["content-type"])
        assert ("no-store", "nosniff") == (
            every.headers["cache-control"],
            every.headers["x-content-type-options"],
        )
        assert {"billing", "orders"} == {pool["name"] for pool in json.loads(every.body)["pools"]}
        assert ["orders"] == [pool["name"] for pool in json.loads(one.body)["pools"]]
        assert (400, b"400: held is a number from 0 to 10000\n") == (bad.status, bad.body)
        assert (200, b"") == (head.status, head.body)

    asyncio.run(scenario())


def test_behind_the_same_password(directory: Directory, tmp_path: Path) -> None:
    """With basic auth the board needs the password, as the metrics do."""
    path = tmp_path / "web.yaml"
    path.write_text(yaml.safe_dump(users(ada=hashed())), "utf-8")

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path), moments=directory.moments) as endpoint:
            assert 401 == (await ask(endpoint, API)).status
            assert 200 == (await ask(endpoint, API, headers=basic("ada", PASSWORD))).status

    asyncio.run(scenario())


def test_not_during_a_collection(directory: Directory) -> None:
    """The directory is not read for the board while a scrape reads it; the board waits."""
    gated = Gated()

    async def scenario() -> None:
        async with serving(gated, moments=directory.moments) as endpoint:
            try:
                scrape = asyncio.create_task(ask(endpoint))
                await gated.has_begun()
                board = asyncio.create_task(ask(endpoint, API))
                await ask(endpoint, "/-/healthy")
                assert not board.done()
            finally:
                gated.gate.set()
            assert (200, 200) == ((await scrape).status, (await board).status)

    asyncio.run(scenario())
