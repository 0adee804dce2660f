# SPDX-License-Identifier: Apache-2.0
"""`tls_server_config`: which clients are admitted, by their certificates."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from sqlalchemy_pool_exporter.sidecar.web import tls as webtls
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.wire import Numbers, emptied, serving, talk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.web_files import Files


@pytest.mark.parametrize(
    ("policy", "certificate", "admitted"),
    [
        ("NoClientCert", None, True),
        ("VerifyClientCertIfGiven", None, True),
        ("VerifyClientCertIfGiven", "ours", True),
        ("VerifyClientCertIfGiven", "foreign", False),
        ("RequireAndVerifyClientCert", None, False),
        ("RequireAndVerifyClientCert", "ours", True),
        ("RequireAndVerifyClientCert", "foreign", False),
    ],
)
@pytest.mark.parametrize("inline", [False, True])
def test_client_certificates(
    files: Files, policy: str, certificate: str | None, *, admitted: bool, inline: bool
) -> None:
    """A client certificate is requested and verified according to the policy."""
    clients = {"ours": trustme.CA(), "foreign": trustme.CA()}
    authority = clients["ours"].cert_pem
    authority.write_to_path(files.directory / "clients.crt")
    trust = {"client_ca": authority.bytes().decode()} if inline else {"client_ca_file": "clients.crt"}
    path = files.with_tls(client_auth_type=policy, **(trust if policy != "NoClientCert" else {}))
    leaf = clients[certificate].issue_cert("prometheus.example.org") if certificate else None
    assert admitted is _admitted(files, path, leaf)


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [
        (["prometheus.example.org"], True),
        (["other.example.org", "10.1.2.3"], True),
        (["0:0:0:0:0:0:0:1"], True),
        (["prometheus@example.org"], True),
        (["PROMETHEUS.example.org"], False),
        (["*.example.org", "example.org"], False),
        ([], False),
    ],
)
def test_allowed_names_of_clients(files: Files, allowed: list[str], *, admitted: bool) -> None:
    """A verified client is admitted only if a name, address or e-mail of its certificate is listed exactly."""
    clients = trustme.CA()
    clients.cert_pem.write_to_path(files.directory / "clients.crt")
    path = files.with_tls(
        client_auth_type="RequireAndVerifyClientCert",
        client_ca_file="clients.crt",
        client_allowed_sans=allowed,
    )
    leaf = clients.issue_cert("prometheus.example.org", "10.1.2.3", "::1", "prometheus@example.org")
    assert admitted is _admitted(files, path, leaf)


def _admitted(files: Files, path: Path, leaf: trustme.LeafCert | None) -> bool:
    async def scenario() -> bool:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            try:
                reply = await talk(
                    endpoint,
                    b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                    tls=files.client(leaf),
                )
            except (ssl.SSLError, ConnectionError):
                return False
            await emptied(endpoint)
            return reply.startswith(b"HTTP/1.1 200")

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("certificate", "admitted"),
    [
        ({"subjectAltName": (("URI", "spiffe://example.org/prometheus"),)}, True),
        ({"subjectAltName": (("IP Address", "10.0.0.1"),)}, True),
        ({"subjectAltName": (("DirName", "spiffe://example.org/prometheus"),)}, False),
        ({"subjectAltName": ()}, False),
        ({"subject": ((("commonName", "10.0.0.1"),),)}, False),
    ],
)
def test_kinds_of_names(certificate: dict[str, Any], *, admitted: bool) -> None:
    """URIs count as names; the common name and directory names do not."""
    allowed = frozenset({"spiffe://example.org/prometheus", "10.0.0.1"})
    assert admitted is webtls.ServerTLS(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), allowed).admits(certificate)


def test_clients_whom_the_system_trusts(files: Files) -> None:
    """As in the exporter-toolkit, without a client CA the system's CAs verify client certificates."""
    path = files.with_tls(client_auth_type="VerifyClientCertIfGiven")
    assert _admitted(files, path, None) is True
    assert _admitted(files, path, trustme.CA().issue_cert("prometheus.example.org")) is False
