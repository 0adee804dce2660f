# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: read from file, environment and command line; every fault told, no secret ever."""

from __future__ import annotations

import re
import ssl
import textwrap
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Config, Database, load
from sqlalchemy_pool_exporter.sidecar.document import MAX_BYTES
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from sqlalchemy_pool_exporter.sidecar.sources import CONFIG_VARIABLE, Address
from tests.support.paths import ROOT
from tools import generate_configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHIPPED = ROOT / "config" / "exporter.yaml"
SECRET = "hunter2-correct-horse"  # noqa: S105 - what must not be seen


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that the tests name as `dsn_env`."""
    for name in ("A", "ORDERS_DSN"):
        monkeypatch.setenv(name, "postgresql://db.example/orders")


@pytest.fixture
def given_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a configuration file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "exporter.yaml"
        path.write_text(textwrap.dedent(text), "utf-8")
        return path

    return write


def faults(path: Path | None, overrides: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of the error that ``path`` is."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [line.strip() for line in str(caught.value).splitlines()][1:]


# ------------------------------------------------------- the file we ship


def test_shipped_file_equals_the_defaults() -> None:
    """The shipped file sets every option, to the default."""
    assert load(SHIPPED) == Config()
    shipped = yaml.safe_load(SHIPPED.read_text("utf-8"))
    named = {
        f"{section}.{name}" if isinstance(options, dict) else section
        for section, options in shipped.items()
        for name in (options or [section])
    }
    assert named == {option.path for option in _options() if not option.path.startswith("databases[]")}


def test_shipped_example_of_a_database() -> None:
    """The database that is commented out names every option of one, with its default where there is one."""
    text = SHIPPED.read_text("utf-8").partition("databases: []\n")[2]
    example_file = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    (example_database,) = yaml.safe_load(example_file)["databases"]
    tls = {f"tls.{name}": value for name, value in example_database.pop("tls").items()}
    example_database["pools"] = tuple(example_database["pools"])
    defaults = {
        option.path.removeprefix("databases[]."): option.default
        for option in _options()
        if option.path.startswith("databases[].")
    }
    assert {**example_database, **tls} == {**defaults, "name": "orders", "dsn_env": "ORDERS_DSN"}


def test_pools_of_a_database(given_file: Callable[[str], Path]) -> None:
    """A database is told its pools by their names, each once."""
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


def test_every_option_is_explained() -> None:
    """Each option has a description that is a sentence, and says what it takes."""
    for option in _options():
        assert re.fullmatch(r"[A-Z`].*[.]", option.description), option
        assert option.expects != "a mapping", option


def test_reference_is_generated() -> None:
    """The reference in the documentation is what its generator makes of the types today."""
    text = generate_configuration.PAGE.read_text("utf-8")
    assert text == generate_configuration.page(text)
    assert all(f"`{option.path}`" in text for option in _options())


def test_example_of_the_documentation(given_file: Callable[[str], Path]) -> None:
    """The faults the documentation shows are what such a file gives."""
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


def _options() -> list[generate_configuration.Option]:
    return list(generate_configuration.options_of(Config))


# -------------------------------------------------------------- precedence


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "web:\nlog:\ndatabases:\n", "web: {log: }\n"[:0]]
)
def test_empty_means_default(given_file: Callable[[str], Path], text: str) -> None:
    """A missing or empty option has its default."""
    assert load(given_file(text)) == load() == Config()


def test_precedence(given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line over environment over file over default, each option for itself."""
    path = given_file(
        """
        web: {listen_address: "127.0.0.1:1", telemetry_path: /file}
        log: {level: error, format: json}
        """
    )
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL", "warning")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_DIR", "")
    config = load(path, {"web.listen_address": "[::1]:3", "log.level": None, "web.enable_lifecycle": "true"})
    assert config.web.listen_address == Address("::1", 3)
    assert config.web.telemetry_path == "/file"
    assert config.web.enable_lifecycle is True
    assert config.log.level == "warning"
    assert config.log.format == "json"
    assert config.segments.directory is None


def test_the_environment_names_the_file(
    given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file can be named in the environment; one named directly wins."""
    path = given_file("log: {level: error}")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    assert load().log.level == "error"
    assert load(SHIPPED).log.level == "info"


def test_paths(given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the file are relative to it, those of the environment and the command line are not."""
    path = given_file(
        """
        web: {config_file: web.yaml}
        segments: {directory: /absolute}
        databases: [{name: a, dsn_file: secrets/dsn, tls: {mode: require, ca_file: secrets/ca.crt}}]
        """
    )
    for name in ("web.yaml", "other.yaml", "secrets/dsn", "secrets/ca.crt"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).touch()
    (path.parent / "secrets/dsn").write_text("postgresql://db.example/orders")
    trustme.CA().cert_pem.write_to_path(path.parent / "secrets/ca.crt")
    config = load(path)
    assert config.web.config_file == path.parent / "web.yaml"
    assert config.segments.directory == Path("/absolute")
    assert config.databases[0].dsn_file == path.parent / "secrets" / "dsn"
    monkeypatch.chdir(path.parent)
    assert load(path, {"web.config_file": "other.yaml"}).web.config_file == Path("other.yaml")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_DIR", "segments")
    assert load(path).segments.directory == Path("segments")


def test_a_configuration_is_a_value() -> None:
    """A configuration cannot be changed, and equal ones are equal."""
    config = load(SHIPPED)
    with pytest.raises(ValidationError, match="frozen"):
        config.log.level = "debug"
    assert hash(config.web) == hash(Config().web)


# ------------------------------------------------------------------ faults


def test_every_fault_at_once(given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One error lists every fault, by line: unknown, mistyped, doubled, out of bounds, contradicting."""
    path = given_file(
        """\
        web:
          listen_addres: "[::]:10079"
          listen_address: 10079
          header_timeout_seconds: .nan
          telemetry_path: /-/metrics
          telemetry_path: /metrics
          enable_lifecycle: "yes"
        log: {level: loud, format: off}
        segments: here
        metrics: []
        databases:
          -
          - name: orders
            dsn: postgresql+asyncpg://u:p@h/db
            timeout_seconds: 50
            tls: {ca_file: ca.pem, cert_file: c.pem, mode: verify}
          - name: orders
          - dsn: !vault orders
            <<: {interval_seconds: 5}
            ? [a]
            : b
            2020-02-31: 1
        unheard: of
        """
    )
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL", "all")
    assert faults(path, {"web.listen_address": "here:there"}) == [
        "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL: log.level: expected one of debug, info, warning, error",
        "command line: web.listen_address: expected host:port, :port or [ipv6]:port",
        "line 2: web.listen_addres: unknown key, did you mean 'listen_address'?",
        "line 3: web.listen_address: expected host:port, :port or [ipv6]:port; put it in quotes",
        "line 4: web.header_timeout_seconds: expected a number from 0.01 to 3600",
        "line 5: web.telemetry_path: expected a path such as /metrics, outside /-/",
        "line 6: web.telemetry_path: given twice, first in line 5",
        "line 7: web.enable_lifecycle: expected true or false, got text",
        "line 8: log.format: expected one of text, json, got true or false",
        "line 8: log.level: expected one of debug, info, warning, error",
        "line 9: segments: expected a mapping, got a single value",
        "line 10: metrics: expected a mapping, got a list",
        "line 12: databases[0]: expected a mapping, got nothing",
        "line 13: databases[1].name: is not unique",
        "line 14: databases[1].dsn: is a URL of SQLAlchemy; write postgresql:// without a driver",
        (
            "line 15: databases[1].timeout_seconds: is above interval_seconds; "
            "the next probe would be due before this one has ended"
        ),
        "line 16: databases[1].tls: cert_file and key_file belong together",
        "line 16: databases[1].tls.mode: expected one of disable, require, verify-ca, verify-full",
        "line 17: databases[2]: give exactly one of dsn, dsn_file, dsn_env, not none",
        "line 17: databases[2].name: is not unique",
        "line 18: databases[3].dsn: expected text, got a YAML tag (quote text that begins with '!')",
        "line 18: databases[3].name: required",
        "line 19: databases[3].(key): merge keys are not supported; write each option out",
        "line 20: databases[3].(key): a key must be text",
        (
            "line 22: databases[3].(key): unknown key; known are name, dsn, dsn_file, dsn_env, interval_seconds, "
            "timeout_seconds, application_names_limit, pools, tls"
        ),
        "line 23: unheard: unknown key; known are web, log, segments, metrics, databases",
    ]


DATABASE = "databases: [{name: a, dsn_env: A, %s}]"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("databases: [{name: a}]", "databases[0]: give exactly one of dsn, dsn_file, dsn_env, not none"),
        (
            DATABASE % "dsn_file: f",
            "databases[0]: give exactly one of dsn, dsn_file, dsn_env, not dsn_file and dsn_env",
        ),
        (
            DATABASE % "timeout_seconds: 20",
            "databases[0].timeout_seconds: is above interval_seconds; the next probe",
        ),
        (DATABASE % "tls: {key_file: k}", "databases[0].tls: cert_file and key_file belong together"),
        (
            DATABASE % "tls: {mode: disable, ca_file: c}",
            "databases[0].tls.ca_file: is used only with mode require, verify-ca or verify-full",
        ),
        (
            DATABASE % "tls: {ca_file: c}",
            "databases[0].tls.ca_file: is used only with mode require, verify-ca or verify-full",
        ),
        (
            DATABASE % "tls: {mode: verify-ca}",
            "databases[0].tls.mode: verify-ca needs a ca_file; verify-full can use the system's",
        ),
        (
            DATABASE % "tls: {mode: disable, cert_file: c, key_file: k}",
            "databases[0].tls.cert_file: is used only with a mode other than disable",
        ),
        ("databases: [{name: a b, dsn_env: A}]", "databases[0].name: expected 1 to 63 letters, digits"),
        (
            "databases: [{name: a, dsn_env: $A}]",
            "databases[0].dsn_env: expected the name of an environment variable",
        ),
        (
            "databases: [{name: a, dsn: 'mysql://h/db'}]",
            "databases[0].dsn: expected a DSN that begins with postgresql",
        ),
        (
            "databases: [{name: a, dsn: 'postgresql://['}]",
            "databases[0].dsn: is not a URL; percent-encode special",
        ),
        ("databases: [{name: a, dsn: ''}]", "databases[0].dsn: is empty"),
        ("databases: {name: a}", "databases: expected a list, got a mapping"),
        ("databases: [a]", "databases[0]: expected a mapping, got a single value"),
        ("databases: [[]]", "databases[0]: expected a mapping, got a list"),
        ("databases: [{name: [a], dsn_env: A}]", "databases[0].name: expected 1 to 63 letters, digits"),
        (
            "web: {scrape_timeout_seconds: 0.2}",
            "web.scrape_timeout_offset_seconds: must be below scrape_timeout",
        ),
        (
            "web: {max_request_bytes: 1e6}",
            "web.max_request_bytes: expected an integer from 512 to 1048576, got text",
        ),
        (
            "web: {max_request_bytes: 5000.0}",
            "web.max_request_bytes: expected an integer from 512 to 1048576, got a",
        ),
        (
            "web: {max_request_bytes: true}",
            "web.max_request_bytes: expected an integer from 512 to 1048576, got true",
        ),
        (
            "web: {max_request_bytes: 2020-02-31}",
            "web.max_request_bytes: expected an integer from 512 to 1048576",
        ),
        ("web: {max_request_bytes: 0b_}", "web.max_request_bytes: expected an integer from 512 to 1048576"),
        (
            f"web: {{max_request_bytes: {'9' * 5000}}}",
            "web.max_request_bytes: expected an integer from 512 to",
        ),
        (
            "web: {header_timeout_seconds: .inf}",
            "web.header_timeout_seconds: expected a number from 0.01 to 3600",
        ),
        (
            "web: {header_timeout_seconds: -1}",
            "web.header_timeout_seconds: expected a number from 0.01 to 3600",
        ),
        ("web: {telemetry_path: /}", "web.telemetry_path: expected a path such as /metrics"),
        ("web: {telemetry_path: metrics}", "web.telemetry_path: expected a path such as /metrics"),
        ("web: {telemetry_path: '/<b>'}", "web.telemetry_path: expected a path such as /metrics"),
        ("web: {listen_address: [::]:80}", "not YAML: expected the node content, but found ':'"),
        ("web: {listen_address: 1:2:3}", "web.listen_address: expected host:port, :port or [ipv6]:port"),
        ("web: {config_file: ''}", "web.config_file: expected a path, got an empty one"),
        ('web: {config_file: "a\\0b"}', "web.config_file: expected a path, got an empty one"),
        ("- web", "expected a mapping, got a list"),
        ("web", "expected a mapping, got a single value"),
        ("web: [", "not YAML: expected the node content, but found '<stream end>'"),
        ("web: *anchor", "not YAML: found undefined alias …"),
        ("web: {}\n---\nlog: {}", "not YAML: but found another document"),
        ("web: \x07", "not YAML: a character that YAML does not allow"),
        ("[" * 5000, "not YAML: nested too deeply"),
    ],
)
def test_fault(given_file: Callable[[str], Path], text: str, fault: str) -> None:
    """Each wrong configuration is exactly one fault, that says where and what."""
    (found,) = faults(given_file(text))
    assert re.sub(r"^line \d+: ", "", found).startswith(fault)


def test_faults_without_end(given_file: Callable[[str], Path]) -> None:
    """Of very many faults, the error lists the first and counts the rest."""
    found = faults(given_file(f"databases: [{'a, ' * 50_000}]"))
    assert found[0] == "line 1: databases[0]: expected a mapping, got a single value"
    assert found[100:] == ["and 49900 more"]


def test_aliases_cannot_explode(given_file: Callable[[str], Path]) -> None:
    """A file that unfolds to billions of nodes is refused as quickly as any other."""
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    path = given_file(f"a0: &a0 [1]\n{levels}databases: *a19\n")
    assert any("databases[8]: expected a mapping, got a list" in fault for fault in faults(path))


def test_a_file_that_contains_itself(given_file: Callable[[str], Path]) -> None:
    """An alias inside of what it names is refused, not followed."""
    assert faults(given_file("databases: &a [*a]"))
    assert faults(given_file("&a {web: *a}"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"web: \xff", "byte 5 is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """A missing, binary or huge file is an error that names it and the reason."""
    path = tmp_path / "exporter.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"cannot read {str(path)!r}: {reason}")):
        load(path)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """A directory in the place of the file is an error like any other."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """A file from an editor that marks UTF-8 is read."""
    path = tmp_path / "exporter.yaml"
    path.write_bytes(b"\xef\xbb\xbflog: {level: error}")
    assert load(path).log.level == "error"


# -------------------------------------------------- what is accepted, runs


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


def test_tls_that_the_documentation_allows(given_file: Callable[[str], Path]) -> None:
    """`require` may have a CA file: the certificate is verified then, and the host name is not."""
    path = given_file(DATABASE % "tls: {mode: require, ca_file: ca.crt}")
    trustme.CA().cert_pem.write_to_path(path.parent / "ca.crt")
    context = load(path).databases[0].connect_arguments()["ssl"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


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
    """A pool connects to one database; without pools a database has the pool that has its name."""
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
    """A rotated password is found at the next connection."""
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
    """A missing or wrong DSN is an error that names where it should be, and nothing of what is there."""
    monkeypatch.setenv("EMPTY", " ")
    monkeypatch.setenv("BAD", f"mysql://u:{SECRET}@h/db")
    monkeypatch.setenv("BRACKET", f"postgresql://u:{SECRET}@[h/db")
    with pytest.raises(ConfigError, match=re.escape(match)) as caught:
        Database(name="a", **options).connect_arguments()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_database_without_a_dsn_cannot_be_made() -> None:
    """A database needs one source of its DSN, in code as in a file."""
    with pytest.raises(ValidationError, match="give exactly one of dsn, dsn_file, dsn_env, not none"):
        Database(name="a")


def test_a_configuration_shows_no_dsn() -> None:
    """A DSN is redacted in every way of writing down what holds it."""
    config = Config(databases=(Database(name="a", dsn=DSN(f"postgresql://u:{SECRET}@h/db")),))
    for shown in (repr(config), str(config), f"{config!r:>10}", str(config.model_dump())):
        assert SECRET not in shown


# Places where a user may have put a password by mistake.
MISPLACED = [
    "databases: [{name: a, dsn: 'postgresql+x://u:%s@h/db'}]",
    "databases: [{name: a, dsn: 'mysql://u:%s@h/db'}]",
    "databases: [{name: a, dsn: 'postgresql://u:%s@[h/db'}]",
    "databases: [{name: a, dsn: ['%s']}]",
    "databases: [{name: a, dsn: {postgresql://u:%s@h/db: }}]",
    "databases: ['postgresql://u:%s@h/db']",
    "databases: {postgresql://u:%s@h/db: 1}",
    "databases: [{name: a, dsn_env: '%s!'}]",
    "databases: [{name: '%s!'}]",
    "databases: [{name: a, dsn_env: A, timeout_seconds: %s}]",
    "databases: [{name: a, dsn_env: A, tls: {mode: %s}}]",
    "databases: [{name: a, dsn_env: A, tls: %s}]",
    "databases: [{name: a, dsn: *%s}]",
    "databases: [{name: a, dsn: &%s x, dsn_env: &%s y}]",
    "databases: [{name: a, dsn: !%s x}]",
    "databases: [{name: a, dsn: !%s!x y}]",
    "databases: [{name: a, dsn: !!%s x}]",
    "databases: [{name: a, dsn: 'unclosed %s]",
    'databases: [{name: a, dsn: "%s\\q"}]',
    "databases: [{name: a, dsn: @%s}]",
    "databases: [{name: a, dsn: `%s`}]",
    "databases:\n  name: a\n dsn: %s",
    "password: %s: %s",
    "%%%s\n---\nweb: {}",
    "? {%s: 1}\n: 2",
    "<<: %s",
    "%s!: 1\n%s!: 2",
    "web: {listen_address: '%s'}",
    "web: {listen_address: '[%s]:80'}",
    "web: {telemetry_path: '%s'}",
    "log: {level: %s}",
    "'%s\x07'",
    "%s",
]


@pytest.mark.parametrize("template", MISPLACED)
@pytest.mark.parametrize("secret", [SECRET, "hunter2correcthorse", "p4ss:w0rd@hunter2", "hunter2'x\"y"])
def test_a_misplaced_secret_is_never_repeated(
    given_file: Callable[[str], Path], template: str, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with the line on which a password stands, the error and its traceback do not show it."""
    path = given_file(template.replace("%%", "\0").replace("%s", secret).replace("\0", "%"))
    try:
        config = load(path)
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
    else:
        shown = repr(config)
    assert "hunter2" not in shown
    assert "hunter2" not in caplog.text


# -------------------------------------------------------------------- fuzz

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=5),
    st.sampled_from(
        [":10079", "/metrics", "info", "json", "postgresql://h/db", "require", "A", "orders", 15, 5.0]
    ),
)
_KEYS = st.sampled_from(
    [name for option in _options() for name in re.split(r"\[\]\.|\.", option.path)]
) | st.text(max_size=5)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=30,
)


def _loads_or_says_why(content: bytes, directory: Path) -> None:
    path = directory / "fuzzed.yaml"
    path.write_bytes(content)
    try:
        config = load(path)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 - one of two outcomes
    else:
        assert isinstance(config, Config)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for all examples of a property."""
    return tmp_path_factory.mktemp("fuzz")


@settings(deadline=None)
@given(tree=_TREES)
def test_any_tree(tree: object, directory: Path) -> None:
    """Any YAML is a configuration or a ConfigError."""
    _loads_or_says_why(yaml.safe_dump(tree).encode(), directory)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("-:?&*!|>%@`'\"{}[],#<=~ \n\tabw0.1"), max_size=60) | st.text())
@example(text="? ? ?\n- !!int x\n")
@example(text="!!timestamp 2020-99-99")
@example(text="!!float 1:2:x")
@example(text="web: !!int ''")
@example(text="web: {max_request_bytes: !!int ''}")
@example(text="web: {max_request_bytes: 1:99999999999999999999}")
@example(text="= : =")
def test_any_text(text: str, directory: Path) -> None:
    """Any text is a configuration or a ConfigError."""
    _loads_or_says_why(text.encode("utf-8", "surrogatepass"), directory)


@settings(deadline=None, max_examples=50)
@given(position=st.integers(0, len(SHIPPED.read_bytes()) - 1), byte=st.binary(min_size=1, max_size=3))
def test_any_damage_to_the_shipped_file(position: int, byte: bytes, directory: Path) -> None:
    """A damaged configuration is a configuration or a ConfigError."""
    content = SHIPPED.read_bytes()
    _loads_or_says_why(content[:position] + byte + content[position + 1 :], directory)
