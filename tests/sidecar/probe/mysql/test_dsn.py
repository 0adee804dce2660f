# SPDX-License-Identifier: Apache-2.0
"""A DSN of MySQL or MariaDB is read as SQLAlchemy reads such a URL, and refused where that is not certain."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.engine import make_url

from sqlalchemy_pool_exporter.sidecar.probe.any_dsn import parse_dsn
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from sqlalchemy_pool_exporter.sidecar.probe.mysql.dsn import MySQLDSN

SECRET = "hunter2"  # noqa: S105 - of no server


@pytest.mark.parametrize(
    "text",
    [
        "mysql://u:p@db.example/orders",
        "mariadb://u:p@db.example:3307/orders",
        "mysql+asyncmy://u:p@10.0.0.1",
        "mariadb+mariadbconnector://u@h/",
        "mysql+pymysql://u%40x:p%2F%3A%40%25@h:3306/or%20ders?charset=utf8mb4",
        "mysql://u:p@[::1]:3306/orders",
        "  mysql://u:p@h/orders\n",
    ],
)
def test_it_is_read_as_sqlalchemy_reads_it(text: str) -> None:
    """User, password, host, port and database are those that SQLAlchemy finds in it."""
    url, dsn = make_url(text.strip()), parse_dsn(text)
    assert isinstance(dsn, MySQLDSN)
    assert (url.username, url.password or "", url.host, url.port or 3306) == (
        dsn.user,
        dsn.reveal_password(),
        dsn.host,
        dsn.port,
    )
    # SQLAlchemy leaves the database as it is written.
    assert (url.database or "").replace("%20", " ") == (dsn.database or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql://u@h", "prefer"),
        ("mysql://u@h?ssl_mode=DISABLED", "disable"),
        ("mysql://u@h?ssl-mode=preferred", "prefer"),
        ("mysql://u@h?ssl_mode=REQUIRED", "require"),
        ("mysql://u@h?ssl_mode=VERIFY_CA&ssl_ca=/ca", "verify-ca"),
        ("mysql://u@h?ssl_mode=VERIFY_IDENTITY", "verify-full"),
        ("mysql://u@h?ssl_ca=/ca", "verify-full"),
        ("mysql://u@/?unix_socket=/run/mysqld/mysqld.sock", "disable"),
        ("mysql://u@h?unix_socket=/run/mysqld/mysqld.sock&ssl_mode=REQUIRED", "require"),
    ],
)
def test_tls_modes(text: str, expected: str) -> None:
    """The mode is what ssl_mode says; with a CA alone, all is verified; through a socket there is none."""
    assert expected == MySQLDSN(text).mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://u:hunter2@", "names no host"),
        ("mysql://h/orders", "names no user"),
        ("mysql://u:hunter2@h:port/orders", "port must be"),
        ("mysql://u:hunter2@h:99999/orders", "port must be"),
        ("mysql://u:hunter2@x@h/orders", "percent-encoded"),
        ("mysql://u:hunter2/x@h/orders", "percent-encoded"),
        ("mysql://u:hunter2#x@h/orders", "percent-encoded"),
        ("mysql://u:hunter2@h1,h2/orders", "not the name"),
        ("mysql://u:hunter2@${HOST}/orders", "percent-encoded|not the name"),
        ("mysql://u:hunter2@%2Frun%2Fmysqld.sock/orders", "unix_socket"),
        ("mysql://u:hunter2@h/orders?unix_socket=relative", "path of a socket"),
        ("mysql://u:hunter2@h/orders?hunter2=1", "a parameter other than unix_socket"),
        ("mysql://u:hunter2@h/orders?ssl_mode", "name=value"),
        ("mysql://u:hunter2@h/orders?ssl_mode=verify-full", "expected one of DISABLED"),
        ("mysql://u:hunter2@h/orders?ssl_mode=VERIFY_CA", "needs ssl_ca"),
        ("mysql://u:hunter2@h/orders?ssl_key=/key", "only with ssl_cert"),
        ("mysql://u:hun%00ter2@h/orders", "NUL"),
        ("mysql://u:hunter2\n@h/orders", "control character"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    """A DSN that is not meant so is refused with a message that quotes nothing of it."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_dsn(text)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_it_shows_itself_only_when_asked() -> None:
    """No text form of it has the password."""
    dsn: Any = MySQLDSN(f"mysql://u:{SECRET}@h/orders")
    for shown in (repr(dsn), str(dsn), f"{dsn!r:>10}", repr([dsn])):
        assert SECRET not in shown
    assert dsn == MySQLDSN(f"mysql://u:{SECRET}@h/orders")


def test_other_schemes_are_postgresqls() -> None:
    """A DSN of PostgreSQL is read as before."""
    assert isinstance(parse_dsn("postgresql://u@h/orders"), DSN)
    with pytest.raises(ValueError, match="begins with postgresql://, mysql:// or mariadb://"):
        parse_dsn("oracle://u@h/orders")
