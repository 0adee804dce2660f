# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: the shipped file, the reference, the accepted settings, and secret DSNs."""

from __future__ import annotations

import os
import re
import ssl
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml
from pydantic import ValidationError

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Config, Database, load
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from tests.support.config_files import DATABASE, SECRET, SHIPPED, all_options, faults
from tests.support.paths import ROOT
from tools import generate_configuration

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("environment")


# ------------------------------------------------------ the shipped file


def test_shipped_file_equals_the_defaults() -> None:
    """The shipped file sets every option to its default."""
    assert load(SHIPPED) == Config()
    shipped = yaml.safe_load(SHIPPED.read_text("utf-8"))
    named = {
        f"{section}.{name}" if isinstance(options, dict) else section
        for section, options in shipped.items()
        for name in (options or [section])
    }
    assert named == {option.path for option in all_options() if not option.path.startswith("databases[]")}


def test_shipped_example_of_a_database() -> None:
    """The commented-out database sets every option of a database, to its default if it has one."""
    text = SHIPPED.read_text("utf-8").partition("databases: []\n")[2]
    example_file = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    (example_database,) = yaml.safe_load(example_file)["databases"]
    tls = {f"tls.{name}": value for name, value in example_database.pop("tls").items()}
    example_database["pools"] = tuple(example_database["pools"])
    defaults = {
        option.path.removeprefix("databases[]."): option.default
        for option in all_options()
        if option.path.startswith("databases[].")
    }
    assert {**example_database, **tls} == {**defaults, "name": "orders", "dsn_env": "ORDERS_DSN"}


def test_every_option_is_explained() -> None:
    """Each option has a sentence as description, and states the values that it accepts."""
    for option in all_options():
        assert re.fullmatch(r"[A-Z`].*[.]", option.description), option
        assert option.expects != "a mapping", option


def test_reference_is_generated() -> None:
    """The reference in the documentation is what its generator writes from the current types."""
    text = generate_configuration.PAGE.read_text("utf-8")
    assert text == generate_configuration.page(text)
    assert all(f"`{option.path}`" in text for option in all_options())


def test_example_of_the_documentation(given_file: Callable[[str], Path]) -> None:
    """The documentation's example file has exactly the faults that the documentation shows."""
    path = given_file(
        """\
        web:
          listen_addres: 0.0.0.0:10079

        databases:
          - name: orders
            dsn_env: ORDERS_DSN
            dsn: postgresql://orders@db/orders
            timeout_seconds: 30
        """
    )
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    shown = text.partition("exporter.yaml: 3 faults\n")[2].partition("```")[0]
    assert faults(path) == [line.strip() for line in shown.splitlines()]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "web:\nlog:\ndatabases:\n", "web: {log: }\n"[:0]]
)
def test_empty_means_default(given_file: Callable[[str], Path], text: str) -> None:
    """A missing or empty option has its default."""
    assert load(given_file(text)) == load() == Config()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            "drop: [sqlalchemy_pool_sizes]",
            "metrics.drop[0]: there is no metric 'sqlalchemy_pool_sizes', did you mean",
        ),
        ("drop: [up]", "metrics.drop[0]: there is no metric 'up'"),
        ("buckets: [0.25, 0.3]", "metrics.buckets[1]: is none of the bounds: 0.0005, 0.001"),
        ("buckets: []", "metrics.buckets: "),
    ],
)
def test_fewer_series_of_what_there_is(given_file: Callable[[str], Path], options: str, fault: str) -> None:
    """Only metrics that there are can be dropped, and only bounds that there are can be chosen."""
    with pytest.raises(ConfigError) as raised:
        load(given_file(f"metrics: {{{options}}}"))
    assert fault in str(raised.value)


def test_a_configuration_is_a_value() -> None:
    """A configuration is immutable, and equal sections have equal hashes."""
    config = load(SHIPPED)
    with pytest.raises(ValidationError, match="frozen"):
        config.log.level = "debug"
    assert hash(config.web) == hash(Config().web)


# ------------------------------------------------------ accepted settings


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            "dsn: 'postgresql://u:pa#ss@h/db'",
            "dsn: special characters in the user or the password must be percent",
        ),
        (
            "dsn: 'postgresql://u:pa@ss@h/db'",
            "dsn: special characters in the user or the password must be percent",
        ),
        (
            "dsn: 'postgresql://u:pa/ss@h/db'",
            "dsn: special characters in the user or the password must be percent",
        ),
        (
            "dsn: 'postgresql://u:pa?s=s@h/db'",
            "dsn: special characters in the user or the password must be perc",
        ),
        (
            "dsn: 'postgresql://u@h:port/db'",
            "dsn: special characters in the user or the password must be percent-encoded, and a port must be",
        ),
        ("dsn: 'postgresql://u@h:99999/db'", "dsn: a port must be from 1 to 65535"),
        ("dsn: 'postgresql://u@h,,i/db'", "dsn: a host is empty"),
        (
            "dsn: 'postgresql://u@h/db?sslmode=odd'",
            "dsn: expected one of disable, allow, prefer, require, verify-ca",
        ),
        ("dsn: 'postgresql://u@h/db?sslmode'", "dsn: a parameter is not written as name=value"),
        ("dsn: 'postgresql:///db?host=h,i&port=1,2,3'", "dsn: has another number of ports than of hosts"),
        ("dsn: 'postgresql://u:a%00b@h/db'", "dsn: has a NUL, which no server takes"),
        (
            "dsn: 'postgresql://u@h/db?ssl_min_protocol_version=1.2'",
            "dsn: expected one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3 as ssl_min_protocol_version",
        ),
        (
            "dsn: 'postgresql://u@h/db?sslmode=verify-ca&sslrootcert=missing'",
            "dsn: database 'a': sslrootcert: cannot read the file (or its key): No such file",
        ),
        (
            "dsn: 'postgresql://u@h/db?sslmode=require&sslrootcert=/dev/null'",
            "dsn: database 'a': sslrootcert: the file (or its key) is not usable: NO_CERTIFICATE",
        ),
        (
            "dsn: 'postgresql://u@h/db?sslmode=require&sslcrl=missing'",
            "dsn: database 'a': sslcrl: cannot read the file",
        ),
        ("dsn: 'postgresql://u@h/db?sslcert=missing'", "dsn: database 'a': sslcert: cannot read the file"),
        (
            "dsn: 'postgresql://u@h/db?sslmode=verify-ca'",
            "dsn: database 'a': sslmode=verify-ca needs sslrootcert, since there is no ~/.postgresql/root.crt",
        ),
        (
            "dsn: 'postgresql://u@h/db?sslnegotiation=direct'",
            "dsn: database 'a': sslnegotiation=direct needs sslmode require, verify-ca or verify-full",
        ),
        ("dsn_env: NOT_SET", "dsn_env: database 'a': environment variable 'NOT_SET' is not set"),
        ("dsn_file: missing", "dsn_file: database 'a': cannot read "),
        ("dsn_env: A, tls: {mode: verify-ca}", "tls.mode: verify-ca needs a ca_file"),
        ("dsn_env: A, tls: {mode: require, ca_file: missing}", "tls.ca_file: database 'a': cannot read "),
        ("dsn_env: A, tls: {mode: require, ca_file: exporter.yaml}", "tls.ca_file: database 'a': "),
        (
            "dsn_env: A, tls: {mode: require, cert_file: missing, key_file: missing}",
            "tls.cert_file: database 'a': cannot read ",
        ),
    ],
)
def test_what_would_fail_at_every_connect(
    given_file: Callable[[str], Path], options: str, fault: str
) -> None:
    """A setting with which every connect would fail is a fault of the configuration."""
    (found,) = faults(given_file(f"databases: [{{name: a, {options}}}]"))
    assert found.startswith(f"line 1: databases[0].{fault}")


def test_each_tls_file_is_read(given_file: Callable[[str], Path]) -> None:
    """Without a CA file that can be read, the check still reads the certificate."""
    path = given_file(DATABASE % "tls: {mode: require, ca_file: a, cert_file: b, key_file: c}")
    assert [fault.partition(":")[2].partition(": database")[0] for fault in faults(path)] == [
        " databases[0].tls.ca_file",
        " databases[0].tls.cert_file",
    ]


def test_a_pipe_is_no_file_of_a_dsn(given_file: Callable[[str], Path], tmp_path: Path) -> None:
    """A `dsn_file` that is a pipe is refused at once, because reading it would wait for a writer."""
    os.mkfifo(tmp_path / "dsn")
    (found,) = faults(given_file("databases: [{name: a, dsn_file: dsn}]"))
    assert found.endswith("/dsn': not a regular file")


def test_tls_that_the_documentation_allows(given_file: Callable[[str], Path]) -> None:
    """With a CA file the mode `require` verifies the certificate, but not the host name."""
    path = given_file(DATABASE % "tls: {mode: require, ca_file: ca.crt}")
    trustme.CA().cert_pem.write_to_path(path.parent / "ca.crt")
    context = load(path).databases[0].connect_arguments()["ssl"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_pools_of_a_database(given_file: Callable[[str], Path]) -> None:
    """A database lists its pools by name, each once; an empty name is a fault."""
    text = """\
        databases:
          - name: orders
            dsn_env: ORDERS_DSN
            pools: [{}]
        """
    assert ("orders", "reports") == load(given_file(text.format("orders, reports"))).databases[0].pools
    assert faults(given_file(text.format("orders, orders"))) == [
        "line 4: databases[0].pools: names a pool twice"
    ]
    assert faults(given_file(text.format("''"))) == [
        "line 4: databases[0].pools[0]: expected the name of a pool"
    ]


@pytest.mark.parametrize(
    ("first", "second", "lines"),
    [
        ("pools: [orders, reports]", "pools: [billing, orders]", [2, 3]),
        ("", "pools: [a]", [3]),
        ("pools: [a]", "pools: [c]", []),
        ("pools: [b]", "", [2]),
    ],
)
def test_a_pool_of_two_databases(
    given_file: Callable[[str], Path], first: str, second: str, lines: list[int]
) -> None:
    """Two databases cannot have the same pool; a database without `pools` has the pool of its own name."""
    path = given_file(
        f"databases:\n- {{name: a, dsn_env: A, {first}}}\n- {{name: b, dsn_env: A, {second}}}\n"
    )
    if not lines:
        assert load(path).databases
        return
    assert faults(path) == [
        f"line {line}: databases[{line - 2}].pools: names a pool of another database; "
        "its connections would be counted at both"
        for line in lines
    ]


# ----------------------------------------------------------------- secrets


def test_dsn_is_found_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DSN comes from the environment, from a file (without the newline at its end), or from the configuration."""
    file = tmp_path / "dsn"
    file.write_text("postgresql://file/db\n", "utf-8")
    monkeypatch.setenv("DSN", "postgresql://env/db")
    inline = DSN("postgresql://inline/db")
    for database, dsn in (
        (Database(name="a", dsn_env="DSN"), "postgresql://env/db"),
        (Database(name="a", dsn_file=file), "postgresql://file/db"),
        (Database(name="a", dsn=inline), "postgresql://inline/db"),
    ):
        assert database.connect_arguments() == {"dsn": dsn, "ssl": None}


def test_dsn_is_read_anew(tmp_path: Path) -> None:
    """Each `read_dsn()` reads the file again, so the next connect uses a rotated password."""
    file = tmp_path / "dsn"
    database = Database(name="a", dsn_file=file)
    file.write_text("postgresql://u:old@h/db", "utf-8")
    before = database.read_dsn()
    file.write_text("postgresql://u:new@h/db", "utf-8")
    assert (before.reveal(), database.read_dsn().reveal()) == (
        "postgresql://u:old@h/db",
        "postgresql://u:new@h/db",
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dsn_env": "MISSING"}, "dsn_env: environment variable 'MISSING' is not set"),
        ({"dsn_env": "EMPTY"}, "dsn_env: environment variable 'EMPTY': is empty"),
        ({"dsn_env": "BAD"}, "dsn_env: environment variable 'BAD': expected a DSN that begins with"),
        ({"dsn_env": "BRACKET"}, "dsn_env: environment variable 'BRACKET': is not a URL"),
        ({"dsn_file": Path("/nowhere/dsn")}, "dsn_file: cannot read '/nowhere/dsn': No such file"),
    ],
)
def test_dsn_that_cannot_be_had(options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing or malformed DSN names the variable or file, and shows none of its content."""
    monkeypatch.setenv("EMPTY", " ")
    monkeypatch.setenv("BAD", f"oracle://u:{SECRET}@h/db")
    monkeypatch.setenv("BRACKET", f"postgresql://u:{SECRET}@[h/db")
    with pytest.raises(ConfigError, match=re.escape(match)) as caught:
        Database(name="a", **options).connect_arguments()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_database_without_a_dsn_cannot_be_made() -> None:
    """A `Database` made in code needs exactly one source of its DSN, as one in a file does."""
    with pytest.raises(ValidationError, match="give exactly one of dsn, dsn_file, dsn_env, not none"):
        Database(name="a")


def test_a_configuration_shows_no_dsn() -> None:
    """Every text form of a configuration redacts the DSN."""
    config = Config(databases=(Database(name="a", dsn=DSN(f"postgresql://u:{SECRET}@h/db")),))
    for shown in (repr(config), str(config), f"{config!r:>10}", str(config.model_dump())):
        assert SECRET not in shown
