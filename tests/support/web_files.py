# SPDX-License-Identifier: Apache-2.0
"""Web configuration files with certificates and users, and requests with credentials."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest
import yaml

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig

from .wire import Numbers, ask, serving

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

    from .wire import Reply

PASSWORD = "correct horse"  # noqa: S105 - of the tests
COST = 4  # the lowest cost that bcrypt allows


class Files:
    """A directory with a web configuration file and the files that it names, made anew for each test."""

    def __init__(self, directory: Path, ca: trustme.CA) -> None:
        self.directory = directory
        self.path = directory / "web.yaml"
        self.ca = ca

    def write(self, content: Any) -> Path:
        """Write the configuration file."""
        self.path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
        return self.path

    def issue(self, name: str = "localhost") -> trustme.LeafCert:
        """Write a server certificate for ``name`` as server.crt and server.key, and return it."""
        leaf = self.ca.issue_cert(name, "localhost", common_name=name)
        leaf.private_key_pem.write_to_path(self.directory / "server.key")
        (self.directory / "server.crt").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return leaf

    def with_tls(self, **options: Any) -> Path:
        """Write a configuration with TLS."""
        self.issue()
        return self.write(
            {"tls_server_config": {"cert_file": "server.crt", "key_file": "server.key", **options}}
        )

    def client(self, leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Return what a client needs to talk to the server, with its own certificate if ``leaf`` is given."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if leaf is not None:
            leaf.configure_cert(context)
        return context


def faults(path: Path) -> list[str]:
    """Return the faults of a web configuration file, without their lines."""
    with pytest.raises(ConfigError) as caught:
        WebConfig(path)
    return [re.sub(r"^\s*line \d+: ", "", line).strip() for line in str(caught.value).splitlines()[1:]]


def hashed(password: str | bytes = PASSWORD, *, cost: int = COST, prefix: str = "2b") -> str:
    """Return the bcrypt hash of ``password``."""
    raw = password if isinstance(password, bytes) else password.encode()
    return bcrypt.hashpw(raw, bcrypt.gensalt(cost)).decode().replace("$2b$", f"${prefix}$", 1)


def basic(user: str | bytes, password: str | bytes) -> dict[str, str]:
    """Return the `Authorization` header of a user."""
    parts = [part if isinstance(part, bytes) else part.encode() for part in (user, password)]
    return {"Authorization": "Basic " + base64.b64encode(b":".join(parts)).decode()}


def users(**hashes: str) -> dict[str, Any]:
    """Return a configuration with users."""
    return {"basic_auth_users": hashes}


def asked(path: Path, *headers: dict[str, str], target: str = "/metrics") -> list[Reply]:
    """Return the answers to requests with ``headers``, one after the other."""

    async def scenario() -> list[Reply]:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            return [await ask(endpoint, target, headers=one) for one in headers]

    return asyncio.run(scenario())
