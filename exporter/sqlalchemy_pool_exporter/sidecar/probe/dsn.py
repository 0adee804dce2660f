# SPDX-License-Identifier: Apache-2.0
"""How a database is reached: the DSN, and the TLS context that goes with it.

asyncpg parses the DSN again. What it would read otherwise than its author meant is refused here: a password that is not
percent-encoded would in part be taken for the name of a host and looked up.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from urllib.parse import SplitResult

_MAX_PORT: Final = 65535
_HOST: Final = re.compile(r"(\[[^][]+\]|[^][:/@]+)(?::([0-9]*))?")
_ENCODE: Final = "special characters in the user or the password must be percent-encoded"

# Parameters that asyncpg itself understands and that have few values; a wrong one fails at every connect.
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
}


class OptionError(ConfigError):
    """An option of a database leads to something that cannot be used now."""

    def __init__(self, option: str, what: str) -> None:
        super().__init__(f"{option}: {what}")
        self.option, self.what = option, what


class DSN(Secret):
    """The address of a PostgreSQL server with user and password, as asyncpg will read it.

    ``hosts`` are pairs of host and port, None where the DSN has no port; none means what ``PG*`` variables say.

    Raises:
        ValueError: the text is not a DSN, or not the one that its author meant. The message quotes nothing of it.
    """

    __slots__ = ("database", "hosts", "parameters", "user")

    def __init__(self, text: str) -> None:
        super().__init__(text)
        url = _split(text)
        self.parameters = _parameters(url.query)
        login, _, hosts = url.netloc.rpartition("@")
        if "@" in login or "@" in url.path or url.fragment or ("@" in url.query and not login):
            raise ValueError(_ENCODE)
        user, _, password = login.partition(":")
        self.hosts = _hosts(hosts, self.parameters)
        self.user = unquote(user) or self.parameters.get("user")
        named = self.parameters.get("dbname") or self.parameters.get("database")
        self.database = unquote(url.path.removeprefix("/")) if url.path else named
        if any("\0" in unquote(part) for part in (login, password, url.path, *self.parameters.values())):
            raise ValueError("has a NUL, which no server takes")


def _split(text: str) -> SplitResult:
    if not text:
        raise ValueError("is empty")
    if re.match(r"postgres(ql)?\+\w+://", text):
        raise ValueError("is a URL of SQLAlchemy; write postgresql:// without a driver")
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected a DSN that begins with postgresql://")
    # urlsplit() drops some control characters silently; half of a surrogate pair cannot be sent.
    if re.search(r"[\0-\x1f\x7f\ud800-\udfff]", text):
        raise ValueError("has a control character; percent-encode special characters of the password")
    try:
        return urlsplit(text)
    except ValueError:
        pass
    raise ValueError("is not a URL; percent-encode special characters of the password")


def _parameters(query: str) -> Mapping[str, str]:
    try:
        parameters = {
            name: values[-1] for name, values in parse_qs(query, strict_parsing=bool(query)).items()
        }
    except ValueError:
        parameters = None
    if parameters is None:
        raise ValueError("a parameter is not written as name=value")
    for name, choices in _CHOICES.items():
        if parameters.get(name, choices[0]) not in choices:
            raise ValueError(f"expected one of {', '.join(choices)} as {name}")
    return parameters


def _hosts(listed: str, parameters: Mapping[str, str]) -> Sequence[tuple[str, int | None]]:
    ports = [_port(port) for port in parameters["port"].split(",")] if "port" in parameters else []
    in_url = bool(listed)
    specs = (listed or parameters.get("host", "")).split(",")
    hosts = [_host(spec, in_url=in_url) for spec in specs] if specs != [""] else []
    if in_url or not ports:
        return hosts
    if len(ports) > 1 and len(ports) != len(hosts):
        raise ValueError("has another number of ports than of hosts")
    ports = ports * max(1, len(hosts)) if len(ports) == 1 else ports
    return [(host, port) for (host, _), port in zip(hosts, ports, strict=False)]


def _host(spec: str, *, in_url: bool) -> tuple[str, int | None]:
    if spec.startswith("/") and not in_url:
        return spec, None  # the directory of a socket
    match = _HOST.fullmatch(spec)
    if match is None:
        raise ValueError(f"{_ENCODE}, and a port must be a number" if spec else "a host is empty")
    host = match[1].strip("[]")
    return unquote(host) if in_url else host, _port(match[2]) if match[2] else None


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= _MAX_PORT:
        raise ValueError(f"a port must be from 1 to {_MAX_PORT}")
    return int(text)


def client_context(
    mode: str, ca_file: Path | None, cert_file: Path | None, key_file: Path | None
) -> ssl.SSLContext:
    """Return the context of a mode of libpq but ``disable``; ``require`` verifies only if a CA file is given.

    Raises:
        OptionError: a file cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.set_alpn_protocols(["postgresql"])
    option, file = "tls.ca_file", ca_file
    try:
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
        elif mode == "verify-full":
            context.load_default_certs()
        else:
            context.verify_mode = ssl.CERT_NONE
        option, file = "tls.cert_file", cert_file
        if cert_file is not None:
            # An empty passphrase, so that an encrypted key is an error and not a prompt on a terminal.
            context.load_cert_chain(cert_file, key_file, password=str)
    except ssl.SSLError as error:
        raise OptionError(option, f"{str(file)!r} (or its key) is not usable: {error.reason}") from error
    except OSError as error:
        raise OptionError(option, f"cannot read {str(file)!r} (or its key): {error.strerror}") from error
    return context
