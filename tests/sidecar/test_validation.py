# SPDX-License-Identifier: Apache-2.0
"""One error reports all faults of a configuration, each once with line and option, and never shows a secret."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import load
from tests.support.config_files import DATABASE, SECRET, faults

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("environment")


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
            "timeout_seconds, application_names_limit, pools, read_only, statements, tls"
        ),
        "line 23: unheard: unknown key; known are web, log, segments, metrics, otlp, databases",
    ]


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
            "databases: [{name: a, dsn: 'oracle://h/db'}]",
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
        ("WEB: {}", "WEB: unknown key, did you mean 'web'?"),
        ('web: {telemetry_path: "/metrics\\n"}', "web.telemetry_path: expected a path such as /metrics"),
        ("web:\n  telemetry_path: |\n    /metrics\n", "web.telemetry_path: expected a path such as /metrics"),
        ("web: {telemetry_path: /-/}", "web.telemetry_path: expected a path such as /metrics, outside /-/"),
        ('databases: [{name: "a\\n", dsn_env: A}]', "databases[0].name: expected 1 to 63 letters, digits"),
        (
            'databases: [{name: a, dsn_env: "A\\n"}]',
            "databases[0].dsn_env: expected the name of an environment variable",
        ),
        ("segments: {directory: exporter.yaml}", "segments.directory: "),
        ("web: !vault {listen_address: ':0'}", "web: expected a mapping, got a YAML tag (quote text that"),
        ("databases: !include []", "databases: expected a list, got a YAML tag (quote text that"),
        ("!vault {web: {}}", "expected a mapping, got a YAML tag (quote text that begins with"),
        ("web: {a: b", "not YAML: expected ',' or '}', but got '<stream end>'"),
        ("web: [", "not YAML: expected the node content, but found '<stream end>'"),
        ("web: *anchor", "not YAML: found undefined alias …"),
        ("web: {}\n---\nlog: {}", "not YAML: but found another document"),
        ("web: \x07", "not YAML: a character that YAML does not allow"),
        ("[" * 5000, "not YAML: nested too deeply"),
    ],
)
def test_fault(given_file: Callable[[str], Path], text: str, fault: str) -> None:
    """Each invalid configuration gives exactly one fault, which names the option and the problem."""
    (found,) = faults(given_file(text))
    assert re.sub(r"^line \d+: ", "", found).startswith(fault)


def test_an_override_inside_of_an_invalid_option(given_file: Callable[[str], Path]) -> None:
    """A fault of the command line is reported, too, if the section of that option is invalid in the file."""
    assert faults(given_file("web: 5"), {"web.listen_address": "x"}) == [
        "command line: web.listen_address: expected host:port, :port or [ipv6]:port",
        "line 1: web: expected a mapping, got a single value",
    ]


def test_faults_without_end(given_file: Callable[[str], Path]) -> None:
    """The error lists the first 100 faults and counts the rest."""
    found = faults(given_file(f"databases: [{'a, ' * 10_000}]"))
    assert found[0] == "line 1: databases[0]: expected a mapping, got a single value"
    assert found[100:] == ["and 9900 more"]


def test_paths(given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the file are relative to its directory; paths from the environment and the command line are not."""
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


# Places where a user may have put a password by mistake.
MISPLACED = [
    "databases: [{name: a, dsn: 'postgresql+x://u:%s@h/db'}]",
    "databases: [{name: a, dsn: 'oracle://u:%s@h/db'}]",
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
    """A password in the wrong place is never shown: not in the error, its traceback, the log or the configuration."""
    path = given_file(template.replace("%%", "\0").replace("%s", secret).replace("\0", "%"))
    try:
        config = load(path)
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
    else:
        shown = repr(config)
    assert "hunter2" not in shown
    assert "hunter2" not in caplog.text
