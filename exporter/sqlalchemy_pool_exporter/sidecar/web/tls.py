# SPDX-License-Identifier: Apache-2.0
"""``tls_server_config`` of a web configuration file → ``ssl.SSLContext``.

The format is Go's view of TLS. What Python's ``ssl`` cannot do is refused with the reason: to ignore an option of this
section is to be less secure than its author believes.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from sqlalchemy_pool_exporter.sidecar.config import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy_pool_exporter.sidecar import schema

_Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}

_Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

# Go's name → OpenSSL's; what Go lists as insecure is as unknown here as it is to the exporter-toolkit. The suites of
# TLS 1.3 can be switched off neither in Go nor in Python: listing them means nothing, and is allowed.
_Cipher = Literal[
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
]
_CIPHERS = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}

_Policy = Literal[
    "",
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
_POLICIES = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class TLSSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``tls_server_config`` as written; an empty text is the same as none."""

    cert: str = ""
    key: Secret = Secret("")
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_auth_type: _Policy = ""
    client_ca_file: str = ""
    client_allowed_sans: tuple[str, ...] | None = None
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"
    cipher_suites: tuple[_Cipher, ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[_Curve, ...] = ()


class TLS(NamedTuple):
    """What new connections are greeted with."""

    context: ssl.SSLContext
    allowed_sans: frozenset[str] | None

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Tell whether a client with the verified ``certificate`` of ``getpeercert()`` may come in."""
        if self.allowed_sans is None or not certificate:  # that there must be one is for OpenSSL to see to
            return True
        names = certificate.get("subjectAltName", ())
        return any(
            (_address(name) if kind == "IP Address" else name) in self.allowed_sans
            for kind, name in names
            if kind in ("DNS", "email", "IP Address", "URI")
        )


def build(
    reading: schema.Reading[Any], settings: TLSSettings, path: str, read: Callable[[str], bytes]
) -> TLS | None:
    """Return what ``settings`` asks for, or None for plain HTTP; what is wrong is blamed on ``reading``.

    ``path`` is the section's; ``read`` returns the content of a file it names.
    """
    s = settings
    if not any(
        (s.cert, s.key.reveal(), s.client_ca, s.cert_file, s.key_file, s.client_auth_type, s.client_ca_file)
    ):
        return None
    before = len(reading.faults)

    def blame(option: str, what: str, *also: str) -> None:
        reading.blame(f"{path}.{option}", what, *(f"{path}.{name}" for name in also))

    _check_certificates(blame, s)
    _check_protocol(blame, s)

    def pem(option: str, inline: str) -> bytes:
        name = getattr(s, f"{option}_file")
        if not name:
            return inline.encode()
        try:
            return read(name)
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or "not a path"
            blame(f"{option}_file", f"cannot read {name!r}: {reason}")
            return b""

    certificate, key = pem("cert", s.cert), pem("key", s.key.reveal())
    client_ca = pem("client_ca", s.client_ca)
    if len(reading.faults) > before:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION  # one handshake a connection: more only costs the server
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version, context.maximum_version = _VERSIONS[s.min_version], _VERSIONS[s.max_version]
    context.verify_mode = _POLICIES[s.client_auth_type]
    for option, step in _steps(context, s, certificate, key, client_ca):
        try:
            step()
        except ssl.SSLError as exc:
            blame(option, f"refused by OpenSSL: {exc.reason or 'not in PEM format'}")
        except ValueError as exc:
            blame(option, str(exc))
    allowed = s.client_allowed_sans
    return TLS(context, None if allowed is None else frozenset(map(_address, allowed)))


def _steps(
    context: ssl.SSLContext, s: TLSSettings, certificate: bytes, key: bytes, client_ca: bytes
) -> Iterator[tuple[str, Callable[[], object]]]:
    option = "cert_file" if s.cert_file else "cert"
    yield option, lambda: _load_certificate(context, certificate, key)
    if client_ca:
        option = "client_ca_file" if s.client_ca_file else "client_ca"
        # Bundles have names of issuers as comments, in any encoding; OpenSSL skips them, and ``ssl`` takes ASCII only.
        yield option, lambda: context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    elif context.verify_mode != ssl.CERT_NONE:  # Go's default: whom the system trusts
        yield "client_auth_type", lambda: context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if s.cipher_suites:
        suites = [_CIPHERS[name] for name in s.cipher_suites if name in _CIPHERS]
        if suites:
            yield "cipher_suites", lambda: context.set_ciphers(":".join(suites))
        else:  # nothing is left for TLS 1.2
            context.minimum_version = ssl.TLSVersion.TLSv1_3
    if not s.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if s.curve_preferences:
        curve = _CURVES[s.curve_preferences[0]]
        yield "curve_preferences", lambda: context.set_ecdh_curve(curve)


def _check_certificates(blame: Callable[..., None], s: TLSSettings) -> None:
    for option, inline in (("cert", s.cert), ("key", s.key.reveal()), ("client_ca", s.client_ca)):
        file = getattr(s, f"{option}_file")
        if inline and file:
            blame(option, f"is given beside {option}_file; keep one of them")
        elif not (inline or file or option == "client_ca"):
            blame(f"{option}_file", f"missing: TLS needs one of {option} and {option}_file", option)
    if s.client_auth_type not in _POLICIES:
        blame(
            "client_auth_type",
            "Python's ssl cannot take a client certificate without verifying it; "
            "use RequireAndVerifyClientCert or VerifyClientCertIfGiven",
        )
    elif _POLICIES[s.client_auth_type] == ssl.CERT_NONE:
        for option in ("client_ca", "client_ca_file", "client_allowed_sans"):
            if getattr(s, option):
                blame(option, "has no effect without a client_auth_type that verifies", "client_auth_type")


def _check_protocol(blame: Callable[..., None], s: TLSSettings) -> None:
    for option in ("min_version", "max_version"):
        if getattr(s, option) not in _VERSIONS:
            blame(option, "is obsolete, and refused by today's OpenSSL; use TLS12 or TLS13")
    if s.min_version > s.max_version:
        blame("min_version", "is above max_version", "max_version")
    if s.cipher_suites and s.max_version == "TLS12" and not set(s.cipher_suites) & set(_CIPHERS):
        blame("cipher_suites", "are all of TLS 1.3, which max_version excludes", "max_version")
    if len(s.curve_preferences) > 1:
        blame(
            "curve_preferences", "Python's ssl can be told one curve only; give one, or none for its default"
        )


def _load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    def encrypted() -> str:  # without this OpenSSL asks at the terminal, and waits
        raise ValueError("the key is encrypted, and the format has no option for its passphrase")

    # ``ssl`` reads certificates from files only. Giving it the bytes that were read, not the name again, is what makes
    # a certificate that is being replaced either the old one or the new one.
    with _file_of(key + b"\n" + certificate) as name:
        context.load_cert_chain(name, password=encrypted)


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """Yield the name of a file with ``content`` that no other process sees: in memory, where the system has that."""
    descriptor = -1
    with suppress(AttributeError, OSError):
        descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    name = f"/proc/self/fd/{descriptor}"
    if descriptor < 0 or not Path(name).exists():
        if descriptor >= 0:
            os.close(descriptor)
        with tempfile.NamedTemporaryFile() as file:  # mode 0600
            file.write(content)
            file.flush()
            yield file.name
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield name


def _address(text: str) -> str:
    """Return an IP address in the one form in which Go writes it; anything else as it is."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text
