# SPDX-License-Identifier: Apache-2.0
"""`tls_server_config`: handshakes with real certificates, and refused options."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sqlalchemy_pool_exporter.sidecar.web import tls as webtls
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.web_files import Files, faults
from tests.support.wire import (
    HANG,
    LATE,
    Numbers,
    ask,
    dial,
    emptied,
    rest,
    run,
    serving,
    settings,
    skip,
    talk,
)

if TYPE_CHECKING:
    from pathlib import Path


async def peer(endpoint: Any, context: ssl.SSLContext) -> tuple[str, ssl.SSLObject]:
    """Connect, and return the common name of the server's certificate and the TLS connection."""
    reader, writer = await dial(endpoint, tls=context)
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate: Any = tls.getpeercert()
    subject = dict(pair for (pair,) in certificate["subject"])
    writer.write(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await rest(reader, writer)).startswith(b"HTTP/1.1 200")
    return subject["commonName"], tls


def test_https(files: Files) -> None:
    """With a certificate the endpoint uses TLS 1.3 by default, and its URL begins with https."""

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(files.with_tls())) as endpoint:
            assert endpoint.url == f"https://127.0.0.1:{endpoint.port}"
            assert (await ask(endpoint, tls=files.client())).status == 200
            _, tls = await peer(endpoint, files.client())
            assert tls.version() == "TLSv1.3"

    asyncio.run(scenario())


def test_http_on_the_https_port(files: Files) -> None:
    """The TLS port closes a plain-HTTP connection and logs no error."""

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(files.with_tls())) as endpoint:
            received = await talk(endpoint, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in received
            await emptied(endpoint)
            assert (await ask(endpoint, tls=files.client())).status == 200

    asyncio.run(scenario())


def test_handshakes_that_never_end(files: Files) -> None:
    """Connections that start no handshake are closed after the timeout, or earlier to make room for a scrape."""

    async def scenario() -> None:
        options = settings(header_timeout_seconds=LATE, max_connections_in_flight=3)
        async with serving(Numbers(), options, web_config=WebConfig(files.with_tls())) as endpoint:
            crowd = [await dial(endpoint) for _ in range(10)]
            assert (await ask(endpoint, tls=files.client())).status == 200
            assert endpoint.connections <= 3
            await skip(LATE)
            for reader, writer in crowd:
                assert await rest(reader, writer) == b""
            await emptied(endpoint)

    run(scenario())


def test_inline_certificate(files: Files) -> None:
    """The file can contain the certificate and the key themselves."""
    leaf = files.issue("inline.example.org")
    chain = "".join(blob.bytes().decode() for blob in leaf.cert_chain_pems)
    path = files.write({"tls_server_config": {"cert": chain, "key": leaf.private_key_pem.bytes().decode()}})

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            assert (await peer(endpoint, files.client()))[0] == "inline.example.org"

    asyncio.run(scenario())


def test_certificates_without_memory_files(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `memfd_create` the server uses a temporary file, which is removed afterwards."""
    temporary = files.directory / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.delattr(os, "memfd_create")
    assert WebConfig(files.with_tls()).current().tls is not None
    assert list(temporary.iterdir()) == []


def test_no_place_for_the_temporary_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a certificate can be put neither into memory nor into a temporary file, that is a fault with its reason."""
    path = files.with_tls()
    monkeypatch.setattr("tempfile.tempdir", str(files.directory / "missing"))
    monkeypatch.delattr(os, "memfd_create")
    assert faults(path) == ["tls_server_config.cert_file: cannot be loaded: No such file or directory"]


def test_certificate_is_replaced_while_running(files: Files) -> None:
    """The next connection uses a renewed certificate; without the matching files the old pair stays in use."""
    path = files.with_tls()

    async def scenario() -> None:
        web_config = WebConfig(path)
        async with serving(Numbers(), web_config=web_config) as endpoint:
            assert (await peer(endpoint, files.client()))[0] == "localhost"
            old_key = (files.directory / "server.key").read_bytes()
            files.issue("renewed.example.org")
            new_key = (files.directory / "server.key").read_bytes()
            (files.directory / "server.key").write_bytes(old_key)  # as between two writes
            assert (await peer(endpoint, files.client()))[0] == "localhost"
            assert (web_config.ok, web_config.failures) == (False, 1)
            (files.directory / "server.key").write_bytes(new_key)
            assert (await peer(endpoint, files.client()))[0] == "renewed.example.org"
            assert (web_config.ok, web_config.failures) == (True, 1)
            (files.directory / "server.crt").unlink()
            assert (await peer(endpoint, files.client()))[0] == "renewed.example.org"
            assert (web_config.ok, web_config.failures) == (False, 2)

    asyncio.run(scenario())


def _handshake(files: Files, path: Path, **client: Any) -> ssl.SSLObject | None:
    context = files.client()
    for name, value in client.items():
        if callable(getattr(context, name)):
            getattr(context, name)(value)
        else:
            setattr(context, name, value)

    async def scenario() -> ssl.SSLObject | None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            try:
                return (await peer(endpoint, context))[1]
            except (ssl.SSLError, ConnectionError):
                return None

    return asyncio.run(scenario())


def test_versions(files: Files) -> None:
    """A client without a version within the bounds is refused; others get the highest common version."""
    newest = files.with_tls(min_version="TLS13")
    assert _handshake(files, newest, maximum_version=ssl.TLSVersion.TLSv1_2) is None
    assert (tls := _handshake(files, newest)) is not None
    assert tls.version() == "TLSv1.3"
    older = files.with_tls(max_version="TLS12")
    assert (tls := _handshake(files, older)) is not None
    assert tls.version() == "TLSv1.2"


GCM_256, GCM_128 = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"


@pytest.mark.parametrize(
    ("suites", "prefer_server", "client", "expected"),
    [
        ([GCM_128], True, "ECDHE+AESGCM", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ([GCM_128], True, "ECDHE-ECDSA-AES256-GCM-SHA384", None),
        (
            [GCM_256, GCM_128],
            True,
            "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
        (
            [GCM_256, GCM_128],
            False,
            "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
    ],
)
def test_cipher_suites(
    files: Files, suites: list[str], client: str, expected: str | None, *, prefer_server: bool
) -> None:
    """A connection uses a listed suite: the server's first choice, or the client's if so configured."""
    path = files.with_tls(
        max_version="TLS12", cipher_suites=suites, prefer_server_cipher_suites=prefer_server
    )
    tls = _handshake(files, path, set_ciphers=client)
    assert expected == (None if tls is None else (tls.cipher() or ("",))[0])


def test_every_cipher_suite_is_known_to_openssl(files: Files) -> None:
    """Each suite of the format, except those of TLS 1.3, has OpenSSL's name of the same suite."""
    suites = [*webtls._CIPHERS]
    context = WebConfig(files.with_tls(cipher_suites=suites)).current().tls
    assert context is not None
    names = {cipher["name"] for cipher in context.context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert names == set(webtls._CIPHERS.values())


def test_suites_of_tls_1_3_alone(files: Files) -> None:
    """If only suites of TLS 1.3 are listed, a client of TLS 1.2 is refused."""
    path = files.with_tls(cipher_suites=["TLS_AES_128_GCM_SHA256"])
    assert _handshake(files, path, maximum_version=ssl.TLSVersion.TLSv1_2) is None
    assert _handshake(files, path) is not None


@pytest.mark.parametrize(
    ("curve", "client", "expected"),
    [
        ("CurveP256", "prime256v1", True),
        ("CurveP384", "secp384r1", True),
        ("CurveP521", "secp521r1", True),
        ("X25519", "X25519", True),
        ("CurveP384", "prime256v1", False),
    ],
)
def test_curve(files: Files, curve: str, client: str, *, expected: bool) -> None:
    """The server accepts only the configured curve; a client without that curve is refused."""
    path = files.with_tls(curve_preferences=[curve])
    assert expected is (_handshake(files, path, set_ecdh_curve=client) is not None)


CERTIFICATE = {"cert_file": "server.crt", "key_file": "server.key"}


def test_an_empty_file_of_cas(files: Files) -> None:
    """A `client_ca_file` without a certificate is refused: the system's CAs, the default, would admit more clients."""
    (files.directory / "clients.crt").touch()
    path = files.with_tls(client_auth_type="RequireAndVerifyClientCert", client_ca_file="clients.crt")
    assert faults(path) == ["tls_server_config.client_ca_file: Empty certificate data"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cert_file": "server.crt"}, ["key_file: missing: TLS needs one of key and key_file"]),
        ({"key_file": "server.key"}, ["cert_file: missing: TLS needs one of cert and cert_file"]),
        (
            {"client_ca_file": "server.crt"},
            [
                "cert_file: missing: TLS needs one of cert and cert_file",
                "key_file: missing: TLS needs one of key and key_file",
                "client_ca_file: has no effect without a client_auth_type that verifies",
            ],
        ),
        ({**CERTIFICATE, "cert": "x"}, ["cert: is given beside cert_file; keep one of them"]),
        ({**CERTIFICATE, "key": "x"}, ["key: is given beside key_file; keep one of them"]),
        (
            {**CERTIFICATE, "cert_file": "none.crt"},
            ["cert_file: cannot read 'none.crt': No such file or directory"],
        ),
        ({**CERTIFICATE, "cert_file": "."}, ["cert_file: cannot read '.': "]),
        ({**CERTIFICATE, "cert_file": "pipe"}, ["cert_file: cannot read 'pipe': not a regular file"]),
        (
            {**CERTIFICATE, "cert_file": "a\0b"},
            ["cert_file: cannot read 'a\\x00b': not a path"],
        ),
        ({**CERTIFICATE, "cert_file": "web.yaml"}, ["cert_file: refused by OpenSSL: "]),
        ({**CERTIFICATE, "key_file": "other.key"}, ["cert_file: refused by OpenSSL: KEY_VALUES_MISMATCH"]),
        (
            {**CERTIFICATE, "key_file": "encrypted.key"},
            ["cert_file: the key is encrypted, and the format has no option for its passphrase"],
        ),
        (
            {**CERTIFICATE, "client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "server.key"},
            ["client_ca_file: refused by OpenSSL: "],
        ),
        (
            {**CERTIFICATE, "client_auth_type": "Always"},
            ["client_auth_type: expected one of , NoClientCert, "],
        ),
        (
            {**CERTIFICATE, "client_auth_type": "RequireAnyClientCert"},
            [
                "client_auth_type: Python's ssl cannot take a client certificate without verifying it; use Require"
            ],
        ),
        (
            {**CERTIFICATE, "client_auth_type": "RequestClientCert", "client_ca": "x"},
            [
                "client_auth_type: Python's ssl cannot take a client certificate without verifying it; use Require"
            ],
        ),
        (
            {**CERTIFICATE, "client_allowed_sans": ["a"]},
            ["client_allowed_sans: has no effect without a client_auth"],
        ),
        (
            {**CERTIFICATE, "min_version": "TLS10"},
            ["min_version: is obsolete, and refused by today's OpenSSL"],
        ),
        (
            {**CERTIFICATE, "min_version": "TLS13", "max_version": "TLS12"},
            ["min_version: is above max_version"],
        ),
        (
            {**CERTIFICATE, "min_version": "TLS14"},
            ["min_version: expected one of TLS10, TLS11, TLS12, TLS13"],
        ),
        (
            {**CERTIFICATE, "cipher_suites": ["TLS_NULL"]},
            ["cipher_suites[0]: expected one of TLS_AES_128_GCM"],
        ),
        (
            {**CERTIFICATE, "cipher_suites": ["TLS_AES_128_GCM_SHA256"], "max_version": "TLS12"},
            ["cipher_suites: are all of TLS 1.3, which max_version excludes"],
        ),
        (
            {**CERTIFICATE, "curve_preferences": ["X25519", "CurveP256"]},
            ["curve_preferences: Python's ssl can be told one curve only; give one, or none for its default"],
        ),
        (
            {**CERTIFICATE, "curve_preferences": ["CurveP257"]},
            ["curve_preferences[0]: expected one of CurveP256"],
        ),
        ({**CERTIFICATE, "cert_filse": "x"}, ["cert_filse: unknown key, did you mean 'cert_file'?"]),
    ],
)
def test_faults_of_tls(files: Files, options: dict[str, Any], expected: list[str]) -> None:
    """Missing, contradictory, unreadable and unsupported options are refused, each with the reason."""
    files.issue()
    os.mkfifo(files.directory / "pipe")
    key = ec.generate_private_key(ec.SECP256R1())
    for name, encryption in (
        ("other.key", serialization.NoEncryption()),
        ("encrypted.key", serialization.BestAvailableEncryption(b"x")),
    ):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        (files.directory / name).write_bytes(pem)
    found = faults(files.write({"tls_server_config": options}))
    assert len(found) == len(expected), found
    for fault, text in zip(found, expected, strict=True):
        assert fault.startswith(f"tls_server_config.{text}")


def test_options_that_do_not_switch_tls_on(files: Files) -> None:
    """As in the exporter-toolkit, a certificate, a key or a client option switches TLS on; a version alone does not."""
    assert (
        WebConfig(files.write({"tls_server_config": {"min_version": "TLS13", "cert_file": ""}})).current().tls
        is None
    )


def test_an_encrypted_key_does_not_prompt(files: Files) -> None:
    """An encrypted key is refused without a prompt for its passphrase, which would block for ever."""
    files.issue()
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    (files.directory / "server.key").write_bytes(pem)
    path = files.write({"tls_server_config": CERTIFICATE})
    program = (
        "import pathlib, sys; from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig; "
        "WebConfig(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 1
    assert "the key is encrypted" in done.stderr
    assert "pass phrase" not in done.stdout + done.stderr
