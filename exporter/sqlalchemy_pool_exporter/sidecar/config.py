# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: models, and how they are loaded.

The models are the only source of names, defaults, limits and descriptions. The generators of documentation and chart
read them, and a test compares ``config/exporter.yaml`` with them.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainSerializer, WithJsonSchema

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.metrics import ALL_METRICS, BUCKETS

from .document import Document, Untyped, read_regular, read_text
from .otlp.settings import OTLP
from .probe.any_dsn import AnyDSN, check, parse_dsn
from .probe.dsn import OptionError, client_context
from .secret import Secret
from .sources import DEFAULT_ADDRESS, find_file, find_overrides
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
    from collections.abc import Callable, Iterator, Sequence

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
        # pydantic's engine has no look-ahead for "not /-/"; Python's would let "$" match before a final newline.
        pattern=r"^/(-|(-?[A-Za-z0-9._~]|--|/)[A-Za-z0-9._~/-]*)$",
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
DSNText = Annotated[AnyDSN, parsed(Secret, parse_dsn), WithJsonSchema({"type": "string"})]
MetricName = Annotated[str, Field(min_length=1, json_schema_extra={"expects": "the name of a metric"})]
Bound = Annotated[float, Field(gt=0, json_schema_extra={"expects": "seconds"})]
# Every metric by the name of its samples, and its family.
ALL_NAMES: Mapping[str, str] = {metric.name: metric.family for metric in ALL_METRICS}
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
        description="Connections at once. At the limit, a new connection replaces the one that has been idle longest; "
        "while every connection has a request under way, the new one waits.",
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
        default=10.0, description="Time a client may stop reading before its connection is closed."
    )
    scrape_timeout_seconds: Seconds = Field(
        default=30.0,
        description="Longest scrape; 503 after that. Prometheus' `X-Prometheus-Scrape-Timeout-Seconds` lowers it.",
    )
    scrape_timeout_offset_seconds: float = Field(
        default=0.25,
        ge=0,
        le=60,
        description="Subtracted from the timeout that Prometheus sends, so that the answer arrives in time.",
    )
    shutdown_timeout_seconds: Seconds = Field(
        default=5.0, description="Time for scrapes under way to finish when the exporter is stopped."
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check ``config_file`` by loading it as the server will."""
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

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check that ``directory`` is one, if it exists; it may be made after the exporter has started."""
        del given
        if self.directory is not None and context is not None and context.prove:
            with suppress(OSError):
                if not stat.S_ISDIR(self.directory.stat().st_mode):
                    yield contradiction(f"{str(self.directory)!r} is not a directory", "directory")


class Metrics(Section):
    """How the numbers of the workers are combined."""

    worker_label: bool = Field(
        default=True,
        description="State gauges for each worker, with a `worker` label; otherwise summed over the live workers.",
    )
    counters_per_worker: bool = Field(
        default=False,
        description="Counters and histograms for each worker, too; otherwise summed over all workers.",
    )
    drop: tuple[MetricName, ...] = Field(
        default=(),
        description="Metrics that are not shown, to have fewer series; alerts and panels on them are silent.",
    )
    buckets: tuple[Bound, ...] = Field(
        default=BUCKETS,
        min_length=1,
        json_schema_extra={"expects": "a list of upper bounds in seconds"},
        description="Upper bounds of the histograms' buckets that are shown; keep the objective of the rules, 0.25.",
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check that the metrics and the bounds are those that there are."""
        del given, context
        for at, name in enumerate(self.drop):
            if name not in ALL_NAMES:
                close = difflib.get_close_matches(name, ALL_NAMES, 1)
                what = f"there is no metric {name!r}" + (f", did you mean {close[0]!r}?" if close else "")
                yield contradiction(what, ("drop", at))
        for at, bound in enumerate(self.buckets):
            if bound not in BUCKETS:
                among = ", ".join(f"{one:g}" for one in BUCKETS)
                yield contradiction(f"is none of the bounds: {among}", ("buckets", at))

    @property
    def dropped(self) -> frozenset[str]:
        """The families of ``drop``, as the exposition names them."""
        return frozenset(ALL_NAMES[name] for name in self.drop)


class DatabaseTLS(Section):
    """TLS of one database's connection."""

    mode: Literal["disable", "require", "verify-ca", "verify-full"] | None = Field(
        default=None,
        description="As libpq's `sslmode`; without it the `sslmode` of the DSN, else TLS if the server offers it.",
    )
    ca_file: FilePath | None = Field(
        default=None, description="CA certificates that verify the server; without it the system's."
    )
    cert_file: FilePath | None = Field(default=None, description="Client certificate.")
    key_file: FilePath | None = Field(default=None, description="Key of the client certificate.")

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check that files and mode fit together."""
        del given, context
        is_off = self.mode in ("disable", None)
        if self.ca_file is not None and is_off:
            yield contradiction("is used only with mode require, verify-ca or verify-full", "ca_file", "mode")
        if self.ca_file is None and self.mode == "verify-ca":
            # A public CA signs certificates for every host name, and verify-ca does not compare the name.
            what = "verify-ca needs a ca_file; verify-full can use the system's certificates"
            yield contradiction(what, "mode", "ca_file")
        if (self.cert_file is None) != (self.key_file is None):
            yield contradiction("cert_file and key_file belong together", "", "cert_file", "key_file")
        if self.cert_file is not None and is_off:
            yield contradiction("is used only with a mode other than disable", "cert_file", "mode")

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext | Literal[False] | None:
        """Read the files and return a driver's ``ssl``: a context, False for no TLS, None to follow the DSN.

        Args:
            alpn: the protocols that the client offers.

        Raises:
            OptionError: a file cannot be read or used.
        """
        if self.mode is None:
            return None
        if self.mode == "disable":
            return False
        return client_context(self.mode, self.ca_file, self.cert_file, self.key_file, alpn=alpn)


class Database(Section):
    """One database server to probe: PostgreSQL, MySQL or MariaDB."""

    placeholders: ClassVar[Mapping[str, object]] = {"name": "unnamed"}

    name: DatabaseName = Field(description="Value of the `database` label; unique.")
    dsn: DSNText | None = Field(
        default=None,
        description="`postgresql://user:password@host/database`, or `mysql://` or `mariadb://`, which need the extra "
        "`mysql`. Prefer one of the next two.",
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
        description="Application names, and users of MySQL, that have their own series; all others are summed as "
        "`other`.",
    )
    pools: tuple[PoolName, ...] = Field(
        default=(),
        description="Pools that connect to this server, by their `pool` label, so that alerts and dashboards can "
        "compare pools and server; without any, the pool that has the database's name. A pool belongs to one database.",
    )
    read_only: bool = Field(
        default=False,
        description="The pools only read, as from a replica: that the server refuses writes is no alert.",
    )
    statements: bool = Field(
        default=False,
        description="Read the statements of sessions, to show those of held connections, without literals and "
        "comments. Otherwise no text of a statement leaves the server.",
    )
    tls: DatabaseTLS = DatabaseTLS()

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check DSN and TLS by reading what a connect will read."""
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
        # CA and certificate apart, so that a fault in one does not hide the other.
        ca = self.tls.model_copy(update={"cert_file": None, "key_file": None})
        certificate = self.tls.model_copy(update={"ca_file": None})
        builds: list[Callable[[], object]] = [ca.context, certificate.context]
        if len(named) == 1:
            builds.insert(0, self.read_dsn)
        for build in builds:
            try:
                build()
            except OptionError as error:
                yield contradiction(f"database {self.name!r}: {error.what}", tuple(error.option.split(".")))

    def connect_arguments(self) -> dict[str, Any]:
        """Return ``dsn`` and ``ssl`` for a probe's connection, read anew, because secrets and certificates change.

        Raises:
            OptionError: a file or a variable cannot be read or used. The message shows nothing of its content.
        """
        dsn = self.read_dsn()
        return {"dsn": dsn.reveal(), "ssl": self.tls.context(dsn.alpn)}

    def read_dsn(self) -> AnyDSN:
        """Return the DSN from its source, once the files that it names were read; raises OptionError."""
        option, source, text = "dsn", "", ""
        if self.dsn_env is not None:
            option, source = "dsn_env", f"environment variable {self.dsn_env!r}"
            if self.dsn_env not in os.environ:
                raise OptionError(option, f"{source} is not set")
            text = os.environ[self.dsn_env]
        elif self.dsn_file is not None:
            option, source = "dsn_file", f"file {str(self.dsn_file)!r}"
            try:
                text = read_text(self.dsn_file, read_regular)
            except ConfigError as error:
                raise OptionError(option, str(error)) from error
        try:
            dsn = self.dsn or parse_dsn(text)
            check(dsn, self.tls.mode)
        except ValueError as error:
            what = f"{source}: {error}" if source else str(error)
        else:
            return dsn
        raise OptionError(option, what)


class Config(Section):
    """All options of ``sqlalchemy-pool-exporter serve``."""

    web: Web = Web()
    log: Log = Log()
    segments: Segments = Segments()
    metrics: Metrics = Metrics()
    otlp: OTLP = OTLP()
    databases: tuple[Database, ...] = Field(
        default=(), description="Database servers to probe.", json_schema_extra={"expects": "a list"}
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Compare the databases with each other, as written, so that a fault in one does not hide the others."""
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


class _Inputs:
    """The file as read now, and the options of environment and command line; raises ConfigError."""

    def __init__(self, path: Path | None, command_line: Mapping[str, str | None]) -> None:
        self.path = find_file(path)
        self.overrides = find_overrides(command_line)
        self.document = Document("" if self.path is None else read_text(self.path))

    def merged(self) -> Any:
        """Return the values of the file, replaced by the overrides where there are any."""
        tree = self.document.tree
        for location, override in self.overrides.items():
            tree = _replaced(tree, location, Untyped(override.text))
        return tree

    def place(self, location: Location) -> tuple[int, str]:
        """Return the line of an option (0 for an override), and its origin in words."""
        if location in self.overrides:
            return 0, self.overrides[location].origin
        return self.document.place(location)


def load(path: Path | None = None, overrides: Mapping[str, str | None] | None = None) -> Config:
    """Return the configuration. The command line overrides the environment, which overrides the file.

    Args:
        path: the file; without it, the file that the environment names, if any. Paths in it are relative to it.
        overrides: dotted options such as ``"web.listen_address"`` → text of the command line, None if not given.

    Raises:
        ConfigError: it lists every fault, also those of the files that are named, and shows no secret.
    """
    inputs = _Inputs(path, overrides or {})
    directory = inputs.path.parent if inputs.path else Path()
    document = inputs.document
    config, issues = validate(Config, inputs.merged(), Context(directory), inputs.place)
    if inputs.overrides:  # values that are overridden must be valid, too
        where = Context(directory, prove=False)
        issues += validate(Config, document.tree, where, document.place)[1]
    issues += document.issues
    if issues or config is None:
        raise report(str(inputs.path or "configuration"), issues)
    return config


def _pools(database: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the pools of a database as written; without any, the pool that has the database's name."""
    return _texts(*_items(database.get("pools"))) or _texts(database.get("name"))


def _items(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _texts(*values: object) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _replaced(tree: Any, location: Location, value: object) -> Any:
    """Return a copy of ``tree`` with ``value`` at ``location``."""
    if not location:
        return value
    tree = tree if isinstance(tree, dict) else {}
    return {**tree, location[0]: _replaced(tree.get(location[0]), location[1:], value)}
