# SPDX-License-Identifier: Apache-2.0
"""A malformed DSN is refused before its password can be taken for a host; any other is read as asyncpg reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.sidecar.config import Database
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from tests.support import asyncpg_parser
from tests.support.asyncpg_parser import unset_variables
from tests.support.probed_server import SECRET, ProbedServer
from tests.support.running_probe import running, scenario

if TYPE_CHECKING:
    from pathlib import Path

UGLY = (
    "postgresql://watcher:pa/{}@127.0.0.1:1/postgres",
    "postgresql://watcher:p@{}:word@127.0.0.1:1/postgres",
    "postgresql://watcher:12#{}@127.0.0.1:1/postgres",
    "postgresql://watcher:12/{}@127.0.0.1:1/postgres",
    "postgresql://watcher:a:{}@127.0.0.1:{}/postgres",
    "postgresql://[{}",
    "postgresql://watcher:\u2100{}@127.0.0.1/postgres",
    "mysql://watcher:{}@127.0.0.1/orders",
    "{}",
    "host=127.0.0.1 password={}",
    "",
)


@pytest.mark.parametrize("template", UGLY)
def test_an_unusable_dsn_is_refused_without_showing_it(template: str) -> None:
    """A DSN whose password is not percent-encoded is refused, and no part of it is in the error."""
    with pytest.raises(ValueError, match=r"encode|expected a DSN|is empty|is not a URL") as caught:
        DSN(template.replace("{}", SECRET))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://127.0.0.1/orders",
        "postgres://watcher:a%40b%2F@db.example:5432/orders?sslmode=verify-full",
        "postgresql://watcher@[::1]:5432,db.example/orders",
        "postgresql:///orders?host=/run/postgresql",
        "postgresql://watcher@%2Frun%2Fpostgresql/orders",
        "postgresql://db.example/orders?options=-c%20search_path%3Dx&client_encoding=utf8&tcp_user_timeout=1",
    ],
)
def test_a_usable_dsn_is_taken(dsn: str) -> None:
    """Hosts, ports, lists of hosts, sockets and percent-encoded passwords are accepted; space around is left out."""
    assert DSN(dsn).reveal() == DSN(f" {dsn}\n").reveal() == dsn


@pytest.mark.parametrize(
    "host", ["${HOST}", "$HOST", "a b", "a..b", ".a", "a" * 64, "[::g]", "h\\i", "(none)"]
)
def test_a_host_that_cannot_be_resolved(host: str) -> None:
    """A host that no resolver can look up, such as a variable that nothing replaced, is refused."""
    for text in (f"postgresql://u:{SECRET}@{host}:5432/orders", f"postgresql:///orders?host={host}"):
        with pytest.raises(ValueError, match=r"not the name or the address of a host|is not a URL") as caught:
            DSN(text)
        assert host not in str(caught.value)


@pytest.mark.parametrize("name", ["host", "port", "user", "password", "dbname", "database"])
def test_a_parameter_that_asyncpg_would_ignore(name: str) -> None:
    """A parameter repeats nothing that stands before the "?": libpq would use the one, asyncpg the other."""
    with pytest.raises(ValueError, match=f"would ignore the parameter {name}; write it before"):
        DSN(f"postgresql://u:p@h/orders?{name}=5433")


@pytest.mark.parametrize(
    "query",
    ["connect_timeout=10", "sslmode=require&channel_binding=require", "keepalives_idle=5", "ssl=true"],
)
def test_a_parameter_that_every_server_refuses(query: str) -> None:
    """A parameter of libpq that asyncpg would send to the server as a setting is refused by name."""
    name = query.rpartition("&")[2].partition("=")[0]
    with pytest.raises(ValueError, match=f"asyncpg would send {name} to the server"):
        DSN(f"postgresql://u:p@h/orders?{query}")


def test_a_plus_in_a_parameter() -> None:
    """A "+" in a parameter is refused, because asyncpg reads it as a space."""
    with pytest.raises(ValueError, match="write %2B"):
        DSN("postgresql:///orders?host=h&user=u&password=a+b")
    DSN("postgresql://u:a+b@h/orders")


_TEXT = st.text(st.sampled_from("aZ09-._~%:@/?#[],&=;+ é\\|'\"") | st.characters(codec="utf-8"), max_size=8)
_NAMES = st.text(st.sampled_from("abz09-."), min_size=1, max_size=8)
_PORTS = st.sampled_from(["", ":", ":1", ":5432", ":65535", ":0", ":65536", ":x", ":+1"])
_HOSTS = st.sampled_from(["h", "db.example", "127.0.0.1", "[::1]", "%2Frun", "h%C3%A9", "", "[::1", "a b"])
_QUERIES = st.sampled_from(
    [
        *(
            "",
            "?",
            "?a=b",
            "?a",
            "?a=",
            "?user=me",
            "?user=%6de&password=x",
            "?dbname=d",
            "?database=e&dbname=f",
        ),
        *(
            "?host=h",
            "?host=h,i",
            "?host=/run",
            "?host=h:1,[::2]:3",
            "?host=h,i&port=1,2",
            "?host=h,i&port=7",
        ),
        *("?host=h:2&port=1,2", "?port=1", "?port=1,2", "?port=x", "?host=", "?host=,", "?sslmode=require"),
        *("?sslmode=odd", "?target_session_attrs=primary", "?target_session_attrs=odd", "?gsslib=odd"),
        *("?user=a@b", "?host=[h", "?host=::1", "?host=[::1]x"),
    ]
)


@st.composite
def _dsns(draw: st.DrawFn) -> str:
    """Draw DSNs, and texts that differ from a DSN in a detail."""
    user, password = draw(_TEXT), draw(_TEXT)
    if draw(st.booleans()):
        user, password = quote(user, safe=""), quote(password, safe="")
    login = draw(st.sampled_from(["", f"{user}@", f"{user}:{password}@", f":{password}@"]))
    hosts = ",".join(draw(st.lists(st.builds("".join, st.tuples(_HOSTS, _PORTS)), max_size=3)))
    path = draw(st.sampled_from(["", "/", "/orders", "/a%20b", "//x", "/a@b"]) | _TEXT.map("/".__add__))
    return f"postgresql://{login}{hosts}{path}{draw(_QUERIES)}"


@given(text=_dsns())
@hypothesis_settings(deadline=None, max_examples=500)
def test_asyncpg_parses_a_dsn_as_this_package_does(text: str) -> None:
    """For asyncpg, every accepted DSN has the same hosts, ports, user and database as for this package."""
    try:
        dsn = DSN(text)
    except ValueError:
        return
    with pytest.MonkeyPatch.context() as patch:
        unset_variables(patch)
        patch.setenv("PGUSER", "default-user")
        patch.setenv("PGPASSFILE", "/nowhere")
        addresses, parameters = asyncpg_parser.read(dsn.reveal())
    expected = [
        f"{host}/.s.PGSQL.{port or 5432}" if host.startswith("/") else (host, port or 5432)
        for host, port in dsn.hosts
    ]
    if dsn.hosts:
        assert addresses == expected
    assert parameters.user == (dsn.user or "default-user")
    assert parameters.database == (parameters.user if dsn.database is None else dsn.database)


@scenario
async def test_a_password_that_changes_is_read_again(
    server: ProbedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each connect reads the DSN's file; a malformed or missing one is a failure with reason configuration."""
    file = tmp_path / "dsn"
    file.write_text(server.dsn("watcher", SECRET.upper()))
    async with running(Database(name="orders", dsn_file=file, timeout_seconds=15.0)) as runner:
        file.write_text(f"postgresql://watcher:x/{SECRET}@y/z")
        await runner.probe_again()
        assert {"authentication": 1, "configuration": 1} == runner.probe.status.failures
        file.unlink()
        await runner.probe_again()
        assert {"authentication": 1, "configuration": 2} == runner.probe.status.failures
        file.write_text(server.dsn())
        await runner.probe_again()
        assert runner.server.max_connections == 20
    assert "percent-encoded" in caplog.text
    assert SECRET not in caplog.text
