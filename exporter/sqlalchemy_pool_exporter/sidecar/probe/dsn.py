# SPDX-License-Identifier: Apache-2.0
"""How a probe reaches a PostgreSQL server: the DSN, and TLS.

asyncpg parses the DSN again. This module refuses a DSN that asyncpg would not read as its author meant it. For example,
asyncpg would take a part of a password that is not percent-encoded for a host name, and look it up.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy_pool_exporter.address import MAX_PORT
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.document import refuse_pipe
from sqlalchemy_pool_exporter.sidecar.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from urllib.parse import SplitResult

_HOST: Final = re.compile(r"(\[[^][]+\]|[^][:/@]+)(?::([0-9]*))?")
# ASCII characters of a host name; the codec ``idna``, which resolving a name uses, judges the others.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_.\x80-\U0010ffff-]+")
ENCODE: Final = "special characters in the user or the password must be percent-encoded"

# Parameters that asyncpg reads itself → the values that it accepts. With any other value every connect fails.
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
}
# Parameter → its default; they are read for TLS only.
_VERSIONS: Final = {"ssl_min_protocol_version": "TLSv1.2", "ssl_max_protocol_version": "TLSv1.3"}
# Parameters of libpq that asyncpg does not read but sends to the server as settings. No server has such a setting or
# lets a client set it, and `replication` forbids asyncpg's queries. The other parameters of libpq are settings, too.
_OF_LIBPQ_ONLY: Final = re.compile(
    "channel_binding|connect_timeout|fallback_application_name|gss(delegation|encmode)|hostaddr|"
    "keepalives(_count|_idle|_interval)?|load_balance_hosts|(max|min)_protocol_version|"
    "oauth_(client_id|client_secret|issuer|scope)|replication|require(_auth|peer|ssl)|scram_(client|server)_key|"
    "servicefile|ssl(certmode|compression|crldir|keylogfile|sni)?"
)
_MODES_WITHOUT_FALLBACK: Final = ("require", "verify-ca", "verify-full")


class OptionError(ConfigError):
    """An option of a database names a file, a variable or a DSN that cannot be used now."""

    def __init__(self, option: str, what: str) -> None:
        super().__init__(f"{option}: {what}")
        self.option, self.what = option, what


class DSN(Secret):
    """The address of a PostgreSQL server with user and password, as asyncpg will read it.

    ``hosts`` are pairs of host and port; the port is None where the DSN has none. Without a host in the DSN, the list
    is empty, and asyncpg uses the ``PG*`` environment variables.

    Raises:
        ValueError: the text is not a DSN, or asyncpg would not read it as its author meant it. The message quotes
            nothing of the text.
    """

    __slots__ = ("database", "hosts", "parameters", "user")
    alpn: ClassVar[Sequence[str]] = ("postgresql",)  # what a client offers in the TLS handshake

    def __init__(self, text: str) -> None:
        text = text.strip()  # YAML's block scalars, and files, end with a newline
        super().__init__(text)
        _check_scheme(text)
        url = split(text)
        login, _, hosts = url.netloc.rpartition("@")
        if "@" in login or "@" in url.path or url.fragment or ("@" in url.query and not login):
            raise ValueError(ENCODE)
        user, _, password = login.partition(":")
        self.parameters = _parameters(url.query)
        before = {"host": hosts, "port": hosts, "user": user, "password": password}
        for name, part in {**before, "dbname": url.path, "database": url.path}.items():
            if part and name in self.parameters:  # libpq would prefer the parameter
                raise ValueError(f"asyncpg would ignore the parameter {name}; write it before the '?'")
        self.hosts = _hosts(hosts, self.parameters)
        self.user = unquote(user) or self.parameters.get("user")
        named = self.parameters.get("dbname") or self.parameters.get("database")
        self.database = unquote(url.path.removeprefix("/")) if url.path else named
        if any("\0" in unquote(part) for part in (login, password, url.path, *self.parameters.values())):
            raise ValueError("has a NUL, which no server takes")


def _check_scheme(text: str) -> None:
    if not text:
        raise ValueError("is empty")
    if re.match(r"postgres(ql)?\+\w+://", text):
        raise ValueError("is a URL of SQLAlchemy; write postgresql:// without a driver")
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected a DSN that begins with postgresql://, mysql:// or mariadb://")


def split(text: str) -> SplitResult:
    """Return the parts of a DSN of any kind of server; raises ValueError, which quotes nothing of it."""
    # urlsplit() drops some control characters silently; half of a surrogate pair cannot be sent.
    if re.search(r"[\0-\x1f\x7f\ud800-\udfff]", text):
        raise ValueError("has a control character; percent-encode special characters of the password")
    try:
        return urlsplit(text)
    except ValueError:
        pass
    raise ValueError("is not a URL; percent-encode special characters of the password")


def _parameters(query: str) -> Mapping[str, str]:
    if "+" in query:
        raise ValueError(
            "asyncpg would read the '+' in a parameter as a space; write %2B, or %20 for a space"
        )
    try:
        parameters = {
            name: values[-1] for name, values in parse_qs(query, strict_parsing=bool(query)).items()
        }
    except ValueError:
        parameters = None
    if parameters is None:
        raise ValueError("a parameter is not written as name=value")
    for name, given in parameters.items():
        if _OF_LIBPQ_ONLY.fullmatch(name):
            raise ValueError(
                f"asyncpg would send {name} to the server as a setting, which every server refuses"
            )
        if name in _CHOICES:
            _check_choice(name, given)
    return parameters


def _check_choice(name: str, given: str) -> None:
    if given not in _CHOICES[name]:
        raise ValueError(f"expected one of {', '.join(_CHOICES[name])} as {name}")


def _hosts(listed: str, parameters: Mapping[str, str]) -> Sequence[tuple[str, int | None]]:
    ports = [_port(port) for port in parameters["port"].split(",")] if "port" in parameters else []
    in_url = bool(listed)
    specs = (listed or parameters.get("host", "")).split(",")
    hosts = [host_and_port(spec, in_url=in_url) for spec in specs] if specs != [""] else []
    if in_url or not ports:
        return hosts
    if len(ports) > 1 and len(ports) != len(hosts):
        raise ValueError("has another number of ports than of hosts")
    ports = ports * max(1, len(hosts)) if len(ports) == 1 else ports
    return [(host, port) for (host, _), port in zip(hosts, ports, strict=False)]


def host_and_port(spec: str, *, in_url: bool) -> tuple[str, int | None]:
    """Return a host and its port, None where it has none; raises ValueError, which quotes nothing of it."""
    if spec.startswith("/") and not in_url:
        return spec, None  # the directory of a socket
    match = _HOST.fullmatch(spec)
    if match is None:
        raise ValueError(f"{ENCODE}, and a port must be a number" if spec else "a host is empty")
    host = unquote(match[1]) if in_url else match[1]
    if not (host.startswith("/") or _can_be_resolved(host)):
        raise ValueError("a host is not the name or the address of a host, nor the directory of a socket")
    return host.strip("[]"), _port(match[2]) if match[2] else None


def _can_be_resolved(host: str) -> bool:
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host.strip("[]"))
            return True
        return bool(_HOST_NAME.fullmatch(host) and host.encode("idna"))
    except ValueError:  # also UnicodeError, for a label that is empty or too long
        return False


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise ValueError(f"a port must be from 1 to {MAX_PORT}")
    return int(text)


def check_connect(dsn: DSN, section_mode: str | None) -> None:
    """Check what asyncpg will use for ``dsn`` beside the DSN itself: ``PG*`` variables, defaults, and TLS files.

    ``section_mode`` is the mode of the section ``tls``. If it is set, asyncpg ignores the TLS files of the DSN.

    Raises:
        ValueError: with this variable, default or file every connect would fail. The message quotes nothing of the DSN.
    """
    if "service" in dsn.parameters:
        _check_service_file()
        return  # asyncpg takes further parameters from a service file
    _check_variables(dsn, section_mode)
    _check_tls(dsn, section_mode)


def _check_service_file() -> None:
    """Raise ValueError if asyncpg, which reads the service file in the event loop, would wait for a pipe."""
    named = os.environ.get("PGSERVICEFILE")
    try:
        if named:
            refuse_pipe(Path(named))
    except OSError as error:
        reason = error.strerror
    else:
        return
    raise ValueError(f"environment variable PGSERVICEFILE: cannot read the file: {reason}")


def _check_variables(dsn: DSN, section_mode: str | None) -> None:
    others = (*dsn.parameters, *_VERSIONS, *(["sslmode"] if section_mode else []))
    checks: dict[str, Callable[[str], object]] = {
        _variable(name): partial(_check_choice, name) for name in _CHOICES if name not in others
    }
    if not dsn.hosts:
        checks["PGHOST"] = lambda text: text and _hosts("", {"host": text})
    if "port" not in dsn.parameters:
        listed = ",".join("h" for _ in dsn.hosts) or os.environ.get("PGHOST", "")
        checks["PGPORT"] = lambda text: text and _hosts("", {"host": listed, "port": text})
    faults = []
    for variable in checks.keys() & os.environ.keys():
        try:
            checks[variable](os.environ[variable])
        except ValueError as error:
            faults.append(f"environment variable {variable}: {error}")
    if not (dsn.user or os.environ.get("PGUSER")):
        try:
            getpass.getuser()
        except (KeyError, OSError):  # no entry in /etc/passwd, as often in a container
            faults.append("names no user, and the user of this process has no name to take instead")
    if faults:
        raise ValueError("; ".join(sorted(faults)))


def _variable(parameter: str) -> str:
    return f"PG{parameter.upper().replace('_', '')}"


def _check_tls(dsn: DSN, section_mode: str | None) -> None:
    def value(name: str) -> str | None:
        return dsn.parameters.get(name) or os.environ.get(_variable(name))

    only_sockets = bool(dsn.hosts) and all(host.startswith("/") for host, _ in dsn.hosts)
    mode = section_mode or value("sslmode") or ("disable" if only_sockets else "prefer")
    if value("sslnegotiation") == "direct" and mode not in _MODES_WITHOUT_FALLBACK:
        raise ValueError("sslnegotiation=direct needs sslmode require, verify-ca or verify-full")
    if section_mode or mode == "disable":
        return
    versions = {name: value(name) or default for name, default in _VERSIONS.items()}
    for name, version in versions.items():
        _check_choice(name, version)
    least, most = versions.values()
    if least > most:  # as texts, whose order is that of the versions
        raise ValueError(f"ssl_max_protocol_version is below the least version, {least}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if mode in _MODES_WITHOUT_FALLBACK:
        found = _load("sslrootcert", value("sslrootcert"), "root.crt", context.load_verify_locations)
        if not found and mode != "require":
            raise ValueError(f"sslmode={mode} needs sslrootcert, since there is no ~/.postgresql/root.crt")
        _load("sslcrl", value("sslcrl"), "root.crl", context.load_verify_locations)

    def load_certificate(file: Path) -> None:
        key = value("sslkey") or _default_file("postgresql.key")
        if key is not None:
            refuse_pipe(Path(key))
        context.load_cert_chain(file, key, password=lambda: dsn.parameters.get("sslpassword", ""))

    _load("sslcert", value("sslcert"), "postgresql.crt", load_certificate)


def _load(parameter: str, named: str | None, default: str, load: Callable[[Path], None]) -> bool:
    """Load the file that ``parameter`` names, or the default file of libpq; return whether there is one."""
    try:
        file = Path(named) if named else _default_file(default)
        if file is not None:
            refuse_pipe(file)
            load(file)
    except ssl.SSLError as error:
        what = f"the file (or its key) is not usable: {_reason(error)}"
    except OSError as error:
        what = f"cannot read the file (or its key): {error.strerror}"
    else:
        return file is not None
    # Raised outside the handlers: the OSError has the path, which is a part of the DSN.
    raise ValueError(f"{parameter}: {what}")


def _default_file(name: str) -> Path | None:
    """Return the file that libpq and asyncpg use if no parameter names one, if it exists."""
    try:
        file = Path.home() / ".postgresql" / name
    except RuntimeError:  # this user has no home directory
        return None
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):  # any other error is one for asyncpg, too
        return None
    return file


def client_context(
    mode: str,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    *,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Return the context for any ``sslmode`` except ``disable``; ``require`` verifies only if a CA file is given.

    ``alpn`` are the protocols that the client offers.

    Raises:
        OptionError: a file cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    if alpn:
        context.set_alpn_protocols(list(alpn))
    option, file = "tls.ca_file", f"{str(ca_file)!r}"
    try:
        if ca_file is not None:
            refuse_pipe(ca_file)
            context.load_verify_locations(cafile=ca_file)
        elif mode == "verify-full":
            context.load_default_certs()
        else:
            context.verify_mode = ssl.CERT_NONE
        option, file = "tls.cert_file", f"{str(cert_file)!r} (or its key)"
        if cert_file is not None:
            for path in (cert_file, key_file or cert_file):
                refuse_pipe(path)
            # An empty passphrase, so that an encrypted key is an error and not a prompt on a terminal.
            context.load_cert_chain(cert_file, key_file, password=str)
    except ssl.SSLError as error:
        raise OptionError(option, f"{file} is not usable: {_reason(error)}") from error
    except OSError as error:
        raise OptionError(option, f"cannot read {file}: {error.strerror}") from error
    return context


def _reason(error: ssl.SSLError) -> str:
    """Return why OpenSSL refuses a file; without a password, for a key that has one, it gives no reason."""
    return error.reason or "not in PEM format, or a key with another password"
