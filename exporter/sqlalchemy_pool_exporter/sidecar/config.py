# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: a YAML file, the environment and the command line → one frozen ``Config``.

The types below are the reference: names, defaults, limits and descriptions are read from them by ``load``, by the
generator of the documentation, and by the test that holds ``config/exporter.yaml`` to them.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from sqlalchemy_pool_exporter.errors import ConfigError

from . import schema

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE = "SQLALCHEMY_POOL_EXPORTER_CONFIG"

# Environment variable → option. Few on purpose: what differs between two containers of one image.
VARIABLES: Mapping[str, str] = {
    "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS": "web.listen_address",
    "SQLALCHEMY_POOL_EXPORTER_DIR": "segments.directory",
    "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL": "log.level",
}

_HIGHEST_PORT = 65535


class Secret:
    """A text that shows itself only when asked to: ``repr``, ``str`` and formatting are redacted."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text; call it where the secret is used and keep the result nowhere."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class Address(NamedTuple):
    """Where to listen; an empty host means every interface, IPv6 and IPv4."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``, ``:port`` or ``[ipv6]:port``; ValueError says which of it is wrong."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([\w.-]*)):([0-9]{1,5})", text, re.ASCII)
        if match is None:
            raise ValueError("expected host:port, :port or [ipv6]:port")
        if match[1]:
            try:
                ipaddress.IPv6Address(match[1])
            except ValueError:
                raise ValueError("what stands in brackets is not an IPv6 address") from None
        if int(match[3]) > _HIGHEST_PORT:
            raise ValueError(f"a port is at most {_HIGHEST_PORT}")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Seconds = Annotated[float, Meta(ge=0.01, le=3600)]


class Web(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP endpoint and its limits."""

    listen_address: Annotated[
        Address, Meta(description="Address to listen on; `:10079` is every interface, IPv6 and IPv4.")
    ] = Address("", 10079)
    config_file: Annotated[
        Path | None,
        Meta(
            description="File with TLS, basic auth and rate limit, in the format of Prometheus' exporter-toolkit."
        ),
    ] = None
    telemetry_path: Annotated[
        str,
        Meta(
            pattern=r"^/(?!-/)[A-Za-z0-9._~/-]+$",
            extra={"expects": "a path such as /metrics, outside /-/"},
            description="Path of the metrics.",
        ),
    ] = "/metrics"
    enable_lifecycle: Annotated[
        bool, Meta(description="Allow `POST /-/reload` and `PUT /-/reload`. SIGHUP reloads in any case.")
    ] = False
    max_connections_in_flight: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Connections at once. One more takes the place of the one that has waited longest without a "
            "request; while every one has a request in hand it waits.",
        ),
    ] = 128
    max_request_bytes: Annotated[
        int, Meta(ge=512, le=1_048_576, description="Largest request, head and body together.")
    ] = 16_384
    header_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="Time for the TLS handshake, and from the first byte of a request until it is complete."
        ),
    ] = 5.0
    keepalive_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="Time an idle connection is kept; longer than the scrape interval saves handshakes."
        ),
    ] = 120.0
    write_timeout_seconds: Annotated[
        Seconds, Meta(description="Time a client may stop reading before its connection is cut.")
    ] = 10.0
    scrape_timeout_seconds: Annotated[
        Seconds,
        Meta(
            description="Longest scrape; 503 after that. Prometheus' `X-Prometheus-Scrape-Timeout-Seconds` lowers it."
        ),
    ] = 30.0
    scrape_timeout_offset_seconds: Annotated[
        float,
        Meta(
            ge=0, le=60, description="Taken off the timeout that Prometheus sends, for the way of the answer."
        ),
    ] = 0.25
    shutdown_timeout_seconds: Annotated[
        Seconds, Meta(description="Time for scrapes under way to finish when the exporter is stopped.")
    ] = 5.0


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The exporter's own log, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged.")
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Meta(description="One line of text or one JSON object each.")
    ] = "text"


class Segments(msgspec.Struct, frozen=True, kw_only=True):
    """The shared directory into which the applications record."""

    directory: Annotated[
        Path | None,
        Meta(description="Directory of the applications' segments; without it no pools are shown."),
    ] = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """How the workers' numbers are put together."""

    worker_label: Annotated[
        bool,
        Meta(
            description="State gauges for each worker with a `worker` label; otherwise summed over the live ones."
        ),
    ] = True
    counters_per_worker: Annotated[
        bool, Meta(description="Counters and histograms for each worker too; otherwise summed over all.")
    ] = False


class DatabaseTLS(msgspec.Struct, frozen=True, kw_only=True):
    """TLS of one database's connection."""

    mode: Annotated[
        Literal["disable", "require", "verify-ca", "verify-full"] | None,
        Meta(
            description="As libpq's `sslmode`; without it what the DSN says, else TLS if the server offers it."
        ),
    ] = None
    ca_file: Annotated[
        Path | None, Meta(description="Certificates to verify the server by; without it the system's.")
    ] = None
    cert_file: Annotated[Path | None, Meta(description="Client certificate.")] = None
    key_file: Annotated[Path | None, Meta(description="Key of the client certificate.")] = None


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """One PostgreSQL server to ask for its side of the story."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.-]{1,63}$",
            extra={"expects": "1 to 63 letters, digits, dots, dashes or underscores"},
            description="Value of the `database` label; unique.",
        ),
    ]
    dsn: Annotated[
        Secret | None,
        Meta(description="`postgresql://user:password@host/database`. Prefer one of the next two."),
    ] = None
    dsn_file: Annotated[
        Path | None, Meta(description="File that holds the DSN, read at every connection.")
    ] = None
    dsn_env: Annotated[
        str | None,
        Meta(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            extra={"expects": "the name of an environment variable"},
            description="Environment variable that holds the DSN.",
        ),
    ] = None
    interval_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="Time between two probes; scrapes serve the last result.")
    ] = 15.0
    timeout_seconds: Annotated[
        float, Meta(ge=0.1, le=300, description="Longest probe, connecting included; not above the interval.")
    ] = 5.0
    application_names_limit: Annotated[
        int,
        Meta(ge=0, le=1000, description="Application names with series of their own; the rest is `other`."),
    ] = 20
    pools: Annotated[
        tuple[Annotated[str, Meta(min_length=1, extra={"expects": "the name of a pool"})], ...],
        Meta(
            description="Pools that connect to this server, by the value of their `pool` label, so that alerts and "
            "dashboards can hold one against the other; without any it is the one called like the database.",
            extra={"expects": "a list, each the name of a pool"},
        ),
    ] = ()
    tls: DatabaseTLS = DatabaseTLS()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``sqlalchemy-pool-exporter serve`` can be told."""

    web: Web = Web()
    log: Log = Log()
    segments: Segments = Segments()
    metrics: Metrics = Metrics()
    databases: Annotated[
        tuple[Database, ...], Meta(description="PostgreSQL servers to probe.", extra={"expects": "a list"})
    ] = ()


def texts(directory: Path) -> Mapping[type, schema.Text]:
    """Return how the types of a Config that are written as text are read, paths relative to ``directory``."""
    return {
        Path: schema.relative_to(directory),
        Secret: schema.Text(Secret, "text"),
        Address: schema.Text(Address.parse, "host:port, :port or [ipv6]:port"),
    }


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Return the configuration: command line over environment over file over default.

    ``path`` is the file, else the one named in ``env``, else there is none; paths in it are relative to it.
    ``overrides`` maps dotted options such as ``"web.listen_address"`` to the text given on the command line; None
    stands for not given. Raises ConfigError with every fault, and never a secret, in its message.
    """
    env = env or {}
    if path is None and env.get(CONFIG_VARIABLE):
        path = Path(env[CONFIG_VARIABLE])
    text = "" if path is None else schema.read_text(path)
    reading = schema.Reading(text, Config, texts=texts(path.parent if path else Path()))
    reading.texts = texts(Path())  # a shell's paths are relative to where it stands
    for variable, option in VARIABLES.items():
        if env.get(variable):
            reading.override(option, env[variable], variable)
    for option, value in (overrides or {}).items():
        if value is not None:
            reading.override(option, value, "command line")
    _contradictions(reading)
    return reading.check(str(path) if path else "configuration")


def resolve_dsn(database: Database, env: Mapping[str, str]) -> Secret:
    """Return the DSN of ``database`` from where it is kept, read now; ConfigError if it is missing or not one."""
    where = f"databases: {database.name!r}"
    if database.dsn is not None:
        return database.dsn
    if database.dsn_env is not None:
        text, where = env.get(database.dsn_env, ""), f"{where}: environment variable {database.dsn_env!r}"
    elif database.dsn_file is not None:
        text, where = schema.read_text(database.dsn_file), f"{where}: file {str(database.dsn_file)!r}"
    else:
        raise ConfigError(f"{where}: has none of dsn, dsn_file, dsn_env")
    dsn = Secret(text.strip())
    if fault := _dsn_fault(dsn):
        raise ConfigError(f"{where}: {fault}")
    return dsn


def _contradictions(reading: schema.Reading[Config]) -> None:
    web = reading.value.web
    if web.scrape_timeout_offset_seconds >= web.scrape_timeout_seconds:
        what = "must be below scrape_timeout_seconds, or no time is left for a scrape"
        reading.blame("web.scrape_timeout_offset_seconds", what, "web.scrape_timeout_seconds")
    names = Counter(database.name for database in reading.value.databases)
    for i, database in enumerate(reading.value.databases):
        path = f"databases[{i}]"
        if database.name and names[database.name] > 1:
            reading.blame(f"{path}.name", "is not unique")
        if len(set(database.pools)) < len(database.pools):
            reading.blame(f"{path}.pools", "names a pool twice")
        _dsn_contradictions(reading, database, path)
        _tls_contradictions(reading, database, path)
        if database.timeout_seconds > database.interval_seconds:
            what = "is above interval_seconds; the next probe would be due before this one has ended"
            reading.blame(f"{path}.timeout_seconds", what, f"{path}.interval_seconds")


def _dsn_contradictions(reading: schema.Reading[Config], database: Database, path: str) -> None:
    sources = ("dsn", "dsn_file", "dsn_env")
    given = [name for name in sources if getattr(database, name) is not None]
    if len(given) != 1:
        what = f"give exactly one of dsn, dsn_file, dsn_env, not {' and '.join(given) or 'none'}"
        reading.blame(path, what, *(f"{path}.{name}" for name in sources))
    elif database.dsn is not None and (fault := _dsn_fault(database.dsn)):
        reading.blame(f"{path}.dsn", fault)


def _tls_contradictions(reading: schema.Reading[Config], database: Database, path: str) -> None:
    tls, path = database.tls, f"{path}.tls"
    if tls.ca_file is not None and tls.mode not in ("verify-ca", "verify-full"):
        reading.blame(f"{path}.ca_file", "is used only with mode verify-ca or verify-full", f"{path}.mode")
    if (tls.cert_file is None) != (tls.key_file is None):
        reading.blame(path, "cert_file and key_file belong together", f"{path}.cert_file", f"{path}.key_file")
    if tls.cert_file is not None and tls.mode in ("disable", None):
        what = "is used only with a mode other than disable"
        reading.blame(f"{path}.cert_file", what, f"{path}.mode")


def _dsn_fault(dsn: Secret) -> str | None:
    """Say what keeps ``dsn`` from being one, quoting nothing of it."""
    text = dsn.reveal()
    if not text:
        return "is empty"
    if re.match(r"postgres(ql)?\+\w+://", text):
        return "is a URL of SQLAlchemy; write postgresql:// without a driver"
    if not text.startswith(("postgresql://", "postgres://")):
        return "expected a DSN that begins with postgresql://"
    try:
        urllib.parse.urlsplit(text)
    except ValueError:
        return "is not a URL; percent-encode special characters of the password"
    return None
