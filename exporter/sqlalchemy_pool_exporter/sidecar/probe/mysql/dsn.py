# SPDX-License-Identifier: Apache-2.0
"""How a probe reaches a MySQL or MariaDB server: the DSN, in the form of SQLAlchemy's URLs, and TLS.

The driver takes no DSN, so this module says which parameters there are: where the socket is, and TLS, with the names
that MySQL's own programs and SQLAlchemy's drivers have for that.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import parse_qsl, unquote

from sqlalchemy_pool_exporter.sidecar.probe.dsn import (
    ENCODE,
    OptionError,
    client_context,
    host_and_port,
    split,
)
from sqlalchemy_pool_exporter.sidecar.secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

MISSING: Final = "MySQL and MariaDB need the extra mysql: pip install 'sqlalchemy-pool-exporter[mysql]'"
DRIVER: Final = "asyncmy"
_PORT: Final = 3306
_SCHEME: Final = re.compile(r"(mysql|mariadb)(\+\w+)?://")
# MySQL's ssl-mode → the mode of the section ``tls``.
_MODES: Final[Mapping[str, str]] = {
    "disabled": "disable",
    "preferred": "prefer",
    "required": "require",
    "verify_ca": "verify-ca",
    "verify_identity": "verify-full",
}
# What a URL of the application may have; the probe has its own character set.
_IGNORED: Final = frozenset(("charset",))
_KNOWN: Final = frozenset(("unix_socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", *_IGNORED))


def is_of_mysql(text: str) -> bool:
    """Return whether the scheme of a DSN is MySQL's or MariaDB's."""
    return _SCHEME.match(text.lstrip()) is not None


class MySQLDSN(Secret):
    """The address of a MySQL or MariaDB server with user and password.

    ``socket`` is the path of a Unix socket, None for TCP. ``parameters`` have underscores instead of dashes.

    Raises:
        ValueError: the text is not a DSN. The message quotes nothing of the text.
    """

    __slots__ = ("_password", "database", "host", "parameters", "port", "socket", "user")
    alpn: ClassVar[Sequence[str]] = ()  # MySQL's protocol has no such name

    def __init__(self, text: str) -> None:
        text = text.strip()  # YAML's block scalars, and files, end with a newline
        super().__init__(text)
        if not is_of_mysql(text):
            raise ValueError("expected a DSN that begins with mysql:// or mariadb://")
        url = split(text)
        login, _, host = url.netloc.rpartition("@")
        if "@" in login or "@" in url.path or url.fragment or ("@" in url.query and not login):
            raise ValueError(ENCODE)
        user, _, password = login.partition(":")
        self.user, self._password = unquote(user), unquote(password)
        self.database = unquote(url.path.removeprefix("/")) or None
        self.parameters = _parameters(url.query)
        self.socket = self.parameters.get("unix_socket")
        self.host, port = host_and_port(host, in_url=True) if host else ("localhost", None)
        self.port = port or _PORT
        self._check(has_host=bool(host))

    def _check(self, *, has_host: bool) -> None:
        if not self.user:
            raise ValueError("names no user")
        if self.socket is None and not has_host:
            raise ValueError("names no host, and no unix_socket")
        if self.socket is not None and not self.socket.startswith("/"):
            raise ValueError("unix_socket must be the path of a socket")
        if self.host.startswith("/"):
            raise ValueError("write the path of a socket as the parameter unix_socket")
        texts = (self.user, self._password, self.database or "", *self.parameters.values())
        if any("\0" in text for text in texts):
            raise ValueError("has a NUL, which no server takes")

    def reveal_password(self) -> str:
        """Return the password; do not store it."""
        return self._password

    @property
    def mode(self) -> str:
        """The mode of TLS that the DSN asks for, as the section ``tls`` has it, or "prefer"."""
        named = self.parameters.get("ssl_mode")
        if named is not None:
            return _MODES[named.lower()]
        if "ssl_ca" in self.parameters:
            return "verify-full"
        return "disable" if self.socket is not None else "prefer"

    def context(self) -> ssl.SSLContext | None:
        """Return the context that the parameters describe, None for no TLS; reads files.

        Raises:
            ValueError: a file cannot be read or used. The message quotes nothing of the DSN.
        """
        if self.mode == "disable":
            return None
        files = {name: self.parameters.get(f"ssl_{name}") for name in ("ca", "cert", "key")}
        ca, cert, key = (None if file is None else Path(file) for file in files.values())
        try:
            return client_context(self.mode, ca, cert, key)
        except OptionError as error:
            option = error.option
        # Raised outside of the handler: the error has the path, which is a part of the DSN.
        named = "ssl_ca" if option.endswith("ca_file") else "ssl_cert"
        raise ValueError(f"{named}: cannot read or use the file (or its key)")


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True)
    except ValueError:
        pairs = None
    if pairs is None:
        raise ValueError("a parameter is not written as name=value")
    found = {name.replace("-", "_"): value for name, value in pairs}
    # The name is not quoted: it may be a part of a password that is not encoded.
    if not found.keys() <= _KNOWN:
        raise ValueError(
            "has a parameter other than unix_socket, ssl_mode, ssl_ca, ssl_cert, ssl_key and charset"
        )
    mode = found.get("ssl_mode")
    if mode is not None and mode.lower() not in _MODES:
        raise ValueError(f"expected one of {', '.join(name.upper() for name in _MODES)} as ssl_mode")
    if _MODES.get((mode or "").lower()) == "verify-ca" and "ssl_ca" not in found:
        # A public CA signs certificates for every host name, and this mode does not compare the name.
        raise ValueError("ssl_mode=VERIFY_CA needs ssl_ca; VERIFY_IDENTITY can use the system's certificates")
    if "ssl_key" in found and "ssl_cert" not in found:
        raise ValueError("ssl_key is used only with ssl_cert")
    return found


def check_mysql(dsn: MySQLDSN, section_mode: str | None) -> None:
    """Check that the driver is installed and that the files of the DSN can be used.

    ``section_mode`` is the mode of the section ``tls``, which replaces that of the DSN.

    Raises:
        ValueError: every connect would fail. The message quotes nothing of the DSN.
    """
    if find_spec(DRIVER) is None:
        raise ValueError(MISSING)
    if section_mode is None:
        dsn.context()
