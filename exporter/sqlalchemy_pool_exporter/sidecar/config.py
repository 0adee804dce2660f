# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: models, and how they are loaded.

The models are the reference. Names, defaults, limits and descriptions are read from them by ``load``, by the generators
of documentation and chart, and by the test that holds ``config/exporter.yaml`` to them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainSerializer, WithJsonSchema

from sqlalchemy_pool_exporter.errors import ConfigError

from .document import Document, Untyped, read_text
from .probe.dsn import DSN, OptionError, client_context
from .sources import DEFAULT_ADDRESS, Address, find_file, find_overrides
from .validation import (
    Context,
    Contradiction,
    FilePath,
    Section,
    contradiction,
    parsed,
    report,
    validate,
)
from .web.config import WebConfig

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from .document import Location

ListenAddress = Annotated[
    Address,
    parsed(Address, Address.parse),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "expects": "host:port, :port or [ipv6]:port"}),
]
Seconds = Annotated[float, Field(ge=0.01, le=3600)]
TelemetryPath = Annotated[
    str,
    Field(
        pattern=r"^/(?!-/)[A-Za-z0-9._~/-]+$",
        json_schema_extra={"expects": "a path such as /metrics, outside /-/"},
    ),
]
DatabaseName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.-]{1,63}$",
        json_schema_extra={"expects": "1 to 63 letters, digits, dots, dashes or underscores"},
    ),
]
VariableName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={"expects": "the name of an environment variable"},
    ),
]
DSNText = Annotated[DSN, parsed(DSN, DSN), WithJsonSchema({"type": "string"})]
PoolName = Annotated[str, Field(min_length=1, json_schema_extra={"expects": "the name of a pool"})]


class Web(Section):
    """The HTTP endpoint and its limits."""

    listen_address: ListenAddress = Field(
        default=DEFAULT_ADDRESS,
        description="Address to listen on; `:10079` is every interface, IPv6 and IPv4.",
    )
    config_file: FilePath | None = Field(
        default=None,
        description="File with TLS, basic auth and rate limit, in the format of Prometheus' exporter-toolkit.",
    )
    telemetry_path: TelemetryPath = Field(default="/metrics", description="Path of the metrics.")
    enable_lifecycle: bool = Field(
        default=False,
        description="Allow `POST /-/reload` and `PUT /-/reload`. SIGHUP reloads in any case.",
    )
    max_connections_in_flight: int = Field(
        default=128,
        ge=1,
        le=10_000,
        description="Connections at once. One more takes the place of the one that has waited longest without a "
        "request; while every one has a request in hand it waits.",
    )
    max_request_bytes: int = Field(
        default=16_384, ge=512, le=1_048_576, description="Largest request, head and body together."
    )
    header_timeout_seconds: Seconds = Field(
        default=5.0,
        description="Time for the TLS handshake, and from the first byte of a request until it is complete.",
    )
    keepalive_timeout_seconds: Seconds = Field(
        default=120.0,
        description="Time an idle connection is kept; longer than the scrape interval saves handshakes.",
    )
    write_timeout_seconds: Seconds = Field(
        default=10.0, description="Time a client may stop reading before its connection is cut."
    )
    scrape_timeout_seconds: Seconds = Field(
        default=30.0,
        description="Longest scrape; 503 after that. Prometheus' `X-Prometheus-Scrape-Timeout-Seconds` lowers it.",
    )
    scrape_timeout_offset_seconds: float = Field(
        default=0.25,
        ge=0,
        le=60,
        description="Taken off the timeout that Prometheus sends, for the way of the answer.",
    )
    shutdown_timeout_seconds: Seconds = Field(
        default=5.0, description="Time for scrapes under way to finish when the exporter is stopped."
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Prove ``config_file`` by building what it configures."""
        del given
        if self.scrape_timeout_offset_seconds >= self.scrape_timeout_seconds:
            what = "must be below scrape_timeout_seconds, or no time is left for a scrape"
            yield contradiction(what, "scrape_timeout_offset_seconds", "scrape_timeout_seconds")
        if self.config_file is not None and context is not None and context.prove:
            try:
                WebConfig(self.config_file)
            except ConfigError as error:
                yield contradiction(str(error), "config_file")


class Log(Section):
    """The exporter's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="One line of text or one JSON object each."
    )


class Segments(Section):
    """The shared directory into which the applications record."""

    directory: FilePath | None = Field(
        default=None, description="Directory of the applications' segments; without it no pools are shown."
    )


class Metrics(Section):
    """How the workers' numbers are put together."""

    worker_label: bool = Field(
        default=True,
        description="State gauges for each worker with a `worker` label; otherwise summed over the live ones.",
    )
    counters_per_worker: bool = Field(
        default=False, description="Counters and histograms for each worker too; otherwise summed over all."
    )


class DatabaseTLS(Section):
    """TLS of one database's connection."""

    mode: Literal["disable", "require", "verify-ca", "verify-full"] | None = Field(
        default=None,
        description="As libpq's `sslmode`; without it what the DSN says, else TLS if the server offers it.",
    )
    ca_file: FilePath | None = Field(
        default=None, description="Certificates to verify the server by; without it the system's."
    )
    cert_file: FilePath | None = Field(default=None, description="Client certificate.")
    key_file: FilePath | None = Field(default=None, description="Key of the client certificate.")

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Hold the files to the mode."""
        del given, context
        is_off = self.mode in ("disable", None)
        if self.ca_file is not None and is_off:
            yield contradiction("is used only with mode require, verify-ca or verify-full", "ca_file", "mode")
        if self.ca_file is None and self.mode == "verify-ca":
            # The public roots sign for anybody: without the host name that would be no check at all.
            what = "verify-ca needs a ca_file; verify-full can do with the system's certificates"
            yield contradiction(what, "mode", "ca_file")
        if (self.cert_file is None) != (self.key_file is None):
            yield contradiction("cert_file and key_file belong together", "", "cert_file", "key_file")
        if self.cert_file is not None and is_off:
            yield contradiction("is used only with a mode other than disable", "cert_file", "mode")

    def context(self) -> ssl.SSLContext | Literal[False] | None:
        """Read the files and return what asyncpg takes: a context, False for no TLS, None for what the DSN says.

        Raises:
            OptionError: a file cannot be read or used.
        """
        if self.mode is None:
            return None
        if self.mode == "disable":
            return False
        return client_context(self.mode, self.ca_file, self.cert_file, self.key_file)


class Database(Section):
    """One PostgreSQL server to ask for its side of the story."""

    stand_ins: ClassVar[Mapping[str, object]] = {"name": "unnamed"}

    name: DatabaseName = Field(description="Value of the `database` label; unique.")
    dsn: DSNText | None = Field(
        default=None, description="`postgresql://user:password@host/database`. Prefer one of the next two."
    )
    dsn_file: FilePath | None = Field(
        default=None, description="File that holds the DSN, read at every connection."
    )
    dsn_env: VariableName | None = Field(default=None, description="Environment variable that holds the DSN.")
    interval_seconds: float = Field(
        default=15.0, ge=1, le=3600, description="Time between two probes; scrapes serve the last result."
    )
    timeout_seconds: float = Field(
        default=5.0, ge=0.1, le=300, description="Longest probe, connecting included; not above the interval."
    )
    application_names_limit: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="Application names with series of their own; the rest is `other`.",
    )
    pools: tuple[PoolName, ...] = Field(
        default=(),
        description="Pools that connect to this server, by the value of their `pool` label, so that alerts and "
        "dashboards can hold one against the other; without any it is the one called like the database. A pool "
        "belongs to one database.",
    )
    tls: DatabaseTLS = DatabaseTLS()

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Prove DSN and TLS by reading what a connect will read."""
        del given
        sources = ("dsn", "dsn_file", "dsn_env")
        named = [name for name in sources if getattr(self, name) is not None]
        if len(named) != 1:
            what = f"give exactly one of dsn, dsn_file, dsn_env, not {' and '.join(named) or 'none'}"
            yield contradiction(what, "", *sources)
        if self.timeout_seconds > self.interval_seconds:
            what = "is above interval_seconds; the next probe would be due before this one has ended"
            yield contradiction(what, "timeout_seconds", "interval_seconds")
        if len(set(self.pools)) < len(self.pools):
            yield contradiction("names a pool twice", "pools")
        if context is None or not context.prove:
            return
        for build in (self.read_dsn, self.tls.context) if len(named) == 1 else (self.tls.context,):
            try:
                build()
            except OptionError as error:
                yield contradiction(f"database {self.name!r}: {error.what}", tuple(error.option.split(".")))

    def connect_arguments(self) -> dict[str, Any]:
        """Return ``dsn`` and ``ssl`` for ``asyncpg.connect()``, read now: passwords and certificates are renewed.

        Raises:
            OptionError: a file or a variable cannot be read or used. The message shows nothing of its content.
        """
        return {"dsn": self.read_dsn().reveal(), "ssl": self.tls.context()}

    def read_dsn(self) -> DSN:
        """Return the DSN from where it is kept; raises OptionError."""
        if self.dsn is not None:
            return self.dsn
        if self.dsn_env is not None:
            option, source = "dsn_env", f"environment variable {self.dsn_env!r}"
            text = os.environ.get(self.dsn_env)
            if text is None:
                raise OptionError(option, f"{source} is not set")
        else:
            option, source = "dsn_file", f"file {str(self.dsn_file)!r}"
            text = self._read_dsn_file()
        try:
            return DSN(text.strip())
        except ValueError as error:
            what = f"{source}: {error}"
        raise OptionError(option, what)

    def _read_dsn_file(self) -> str:
        assert self.dsn_file is not None  # noqa: S101 - for the type checker: check() has seen to it
        try:
            return read_text(self.dsn_file)
        except ConfigError as error:
            raise OptionError("dsn_file", str(error)) from error


class Config(Section):
    """Everything ``sqlalchemy-pool-exporter serve`` can be told."""

    web: Web = Web()
    log: Log = Log()
    segments: Segments = Segments()
    metrics: Metrics = Metrics()
    databases: tuple[Database, ...] = Field(
        default=(), description="PostgreSQL servers to probe.", json_schema_extra={"expects": "a list"}
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Compare the databases with each other, as they are written: others may have faults of their own."""
        del context
        listed = given.get("databases")
        databases = [one if isinstance(one, dict) else {} for one in _items(listed)]
        names = Counter(name for database in databases for name in _texts(database.get("name")))
        pools = Counter(pool for database in databases for pool in {*_pools(database)})
        for i, database in enumerate(databases):
            if any(names[name] > 1 for name in _texts(database.get("name"))):
                yield contradiction("is not unique", ("databases", i, "name"))
            if database.get("pools") and any(pools[pool] > 1 for pool in _pools(database)):
                what = "names a pool of another database; its connections would be counted at both"
                yield contradiction(what, ("databases", i, "pools"))


class Sources:
    """The file as it is now, and the options that environment or command line override; raises ConfigError."""

    def __init__(self, path: Path | None, command_line: Mapping[str, str | None]) -> None:
        self.path = find_file(path)
        self.overrides = find_overrides(command_line)
        self.document = Document("" if self.path is None else read_text(self.path))

    def merged(self) -> Any:
        """Return the values of the file with the overrides in their places."""
        tree = self.document.tree
        for location, override in self.overrides.items():
            tree = _replaced(tree, location, Untyped(override.text))
        return tree

    def place(self, location: Location) -> tuple[int, str]:
        """Return the line of an option, and in words where it is given."""
        if location in self.overrides:
            return 0, self.overrides[location].origin
        return self.document.place(location)


def load(path: Path | None = None, overrides: Mapping[str, str | None] | None = None) -> Config:
    """Return the configuration: command line over environment over file over default.

    ``path`` is the file, else the one named in the environment, else there is none; paths in it are relative to it.
    ``overrides`` maps dotted options such as ``"web.listen_address"`` to the text given on the command line; None
    stands for not given.

    Raises:
        ConfigError: it lists every fault, also those of the files that are named, and never a secret.
    """
    sources = Sources(path, overrides or {})
    directory = sources.path.parent if sources.path else Path()
    document = sources.document
    config, issues = validate(Config, sources.merged(), Context(directory), sources.place)
    if sources.overrides:  # what is overridden is nevertheless to be right
        where = Context(directory, prove=False)
        issues += validate(Config, document.tree, where, document.place)[1]
    issues += document.issues
    if issues or config is None:
        raise report(str(sources.path or "configuration"), issues)
    return config


def _pools(database: Mapping[str, Any]) -> tuple[str, ...]:
    return _texts(*_items(database.get("pools"))) or _texts(database.get("name"))


def _items(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _texts(*values: object) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _replaced(tree: Any, location: Location, value: object) -> Any:
    if not location:
        return value
    tree = tree if isinstance(tree, dict) else {}
    return {**tree, location[0]: _replaced(tree.get(location[0]), location[1:], value)}
