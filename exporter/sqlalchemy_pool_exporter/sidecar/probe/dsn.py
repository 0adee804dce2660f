# SPDX-License-Identifier: Apache-2.0
"""Where a database is and how to reach it: its DSN and its TLS settings, as arguments for asyncpg."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from sqlalchemy_pool_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS settings with libpq's names and meanings; ``require`` verifies the server only if a CA file is given.

    Each connect reads the files again, so a renewed certificate needs no reload.
    """

    mode: Literal["disable", "require", "verify-ca", "verify-full"]
    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None

    def context(self) -> ssl.SSLContext | Literal[False]:
        """Return the context for asyncpg, or ``False`` for no TLS.

        Raises:
            ConfigError: A file cannot be read or used, or the settings contradict each other.
        """
        if self.mode == "disable":
            return False
        if self.mode == "verify-ca" and self.ca_file is None:
            # Public CAs issue certificates to everyone, so trusting them without the host name checks nothing.
            raise ConfigError("tls: 'verify-ca' needs a CA file; only 'verify-full' can use the system's CAs")
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("tls: a key file without a certificate file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.mode == "verify-full"
        context.set_alpn_protocols(["postgresql"])
        file = self.ca_file
        try:
            if self.ca_file is not None:
                context.load_verify_locations(cafile=self.ca_file)
            elif self.mode == "verify-full":
                context.load_default_certs()
            else:
                context.verify_mode = ssl.CERT_NONE
            file = self.cert_file
            if self.cert_file is not None:
                # An empty passphrase makes an encrypted key an error; without it OpenSSL asks on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=str)
        except ssl.SSLError as error:
            raise ConfigError(f"tls: {str(file)!r} (or its key) is not usable: {error.reason}") from error
        except OSError as error:
            raise ConfigError(f"tls: cannot read {str(file)!r} (or its key): {error.strerror}") from error
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """One database to probe.

    If ``dsn`` is a function, each connect calls it, so that a password can change. With ``tls=None`` the DSN's
    ``sslmode`` decides about TLS. ``pools`` names the pools that connect to this database; if it is empty, that is
    the pool with the database's name.

    Raises:
        ConfigError: The DSN is malformed. The message never shows any part of it.
    """

    name: str
    dsn: str | Callable[[], str] = field(repr=False)
    interval_seconds: float = 15.0
    timeout_seconds: float = 5.0
    tls: Tls | None = None
    application_names_limit: int = 20
    pools: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a DSN whose password would be parsed as a host name and sent to a name server."""
        if isinstance(self.dsn, str):
            self._check(self.dsn)

    def connect_arguments(self) -> dict[str, Any]:
        """Return the DSN and the TLS context for asyncpg.connect(); reads the files now."""
        dsn = self.dsn if isinstance(self.dsn, str) else self._check(self.dsn())
        return {"dsn": dsn, "ssl": None if self.tls is None else self.tls.context()}

    def _check(self, dsn: str) -> str:
        if fault := _dsn_fault(dsn):
            raise ConfigError(f"database {self.name!r}: dsn: {fault}")
        return dsn


def _dsn_fault(dsn: str) -> str | None:
    try:
        url = urlsplit(dsn)
    except ValueError:
        return "not a URL"
    if url.scheme not in ("postgresql", "postgres"):
        return "must begin with postgresql://"
    hosts = url.netloc.rpartition("@")[2].split(",")
    odd_port = any(not re.fullmatch(r"(\[[^]]*\]|[^:]*)(:[0-9]*)?", host) for host in hosts)
    if odd_port or url.fragment or url.netloc.count("@") > 1 or "@" in url.path:
        return "special characters in the user or the password must be percent-encoded"
    return None
