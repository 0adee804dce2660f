# SPDX-License-Identifier: Apache-2.0
"""``tls_server_config`` of a web configuration file → ``ssl.SSLContext``.

The format has the options of Go's TLS. An option that Python's ``ssl`` cannot apply is refused with the reason: if it
were ignored, the server would be less secure than its operator believes.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import PrivateAttr, WithJsonSchema

from sqlalchemy_pool_exporter.sidecar.document import reason_of
from sqlalchemy_pool_exporter.sidecar.secret import Secret
from sqlalchemy_pool_exporter.sidecar.validation import (
    Context,
    Contradiction,
    Section,
    contradiction,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}

_Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

# Go's names. Suites that Go lists as insecure are unknown here, as in the exporter-toolkit. Neither Go nor Python can
# switch off the suites of TLS 1.3; they may be listed, without effect.
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
# Go's name → OpenSSL's.
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

_ClientAuth = Literal[
    "",
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
_CLIENT_AUTH = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class ServerTLS(NamedTuple):
    """The TLS settings of new connections."""

    context: ssl.SSLContext
    allowed_sans: frozenset[str] | None

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client with the verified ``certificate`` of ``getpeercert()`` is allowed."""
        if (
            self.allowed_sans is None or not certificate
        ):  # OpenSSL has refused a client that lacks a required one
            return True
        names = certificate.get("subjectAltName", ())
        return any(
            (_address(name) if kind == "IP Address" else name) in self.allowed_sans
            for kind, name in names
            if kind in ("DNS", "email", "IP Address", "URI")
        )


SecretText = Annotated[Secret, parsed(Secret, Secret), WithJsonSchema({"type": "string"})]


class TLSServerConfig(Section):
    """``tls_server_config`` as written; an empty text means that the option is not set."""

    cert: str = ""
    key: SecretText = Secret("")
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_auth_type: _ClientAuth = ""
    client_ca_file: str = ""
    client_allowed_sans: tuple[str, ...] | None = None
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"
    cipher_suites: tuple[_Cipher, ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[_Curve, ...] = ()

    _server_tls: ServerTLS | None = PrivateAttr(default=None)

    @property
    def server_tls(self) -> ServerTLS | None:
        """The settings, made from the files as read by the validation; None is plain HTTP."""
        return self._server_tls

    @property
    def verifies_clients(self) -> bool:
        """Whether a client's certificate is verified."""
        return _CLIENT_AUTH.get(self.client_auth_type, ssl.CERT_NONE) != ssl.CERT_NONE

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Build the TLS settings if an option that enables TLS is set."""
        del given
        enabling = (self.cert, self.key.reveal(), self.client_ca, self.cert_file, self.key_file)
        if context is None or not any((*enabling, self.client_auth_type, self.client_ca_file)):
            return
        contents: dict[str, bytes] = {}
        issues = [*_check_certificates(self), *_check_protocol(self), *_read(self, context, contents)]
        yield from issues
        if not issues:
            yield from self._build(contents)

    def _build(self, contents: Mapping[str, bytes]) -> Iterator[Contradiction]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION  # clients could make the server compute more handshakes
        context.set_alpn_protocols(["http/1.1"])
        context.minimum_version = _VERSIONS[self.min_version]
        context.maximum_version = _VERSIONS[self.max_version]
        context.verify_mode = _CLIENT_AUTH[self.client_auth_type]
        for option, step in _steps(context, self, contents):
            try:
                step()
            except ssl.SSLError as error:
                yield contradiction(f"refused by OpenSSL: {error.reason or 'not in PEM format'}", option)
            except OSError as error:  # of the temporary file
                yield contradiction(f"cannot be loaded: {reason_of(error)}", option)
            except ValueError as error:
                yield contradiction(str(error), option)
        allowed = self.client_allowed_sans
        self._server_tls = ServerTLS(context, None if allowed is None else frozenset(map(_address, allowed)))


def _read(section: TLSServerConfig, context: Context, contents: dict[str, bytes]) -> Iterator[Contradiction]:
    """Fill ``contents`` with certificate, key and CA, from the files or the section; yield what cannot be read."""
    inline = {"cert": section.cert, "key": section.key.reveal(), "client_ca": section.client_ca}
    for option, text in inline.items():
        name = getattr(section, f"{option}_file")
        try:
            contents[option] = context.read(context.directory / name) if name else text.encode()
        except (OSError, ValueError) as error:
            yield contradiction(f"cannot read {name!r}: {reason_of(error)}", f"{option}_file")


def _steps(
    context: ssl.SSLContext, section: TLSServerConfig, contents: Mapping[str, bytes]
) -> Iterator[tuple[str, Callable[[], object]]]:
    certificate, key, client_ca = contents["cert"], contents["key"], contents["client_ca"]
    option = "cert_file" if section.cert_file else "cert"
    yield option, lambda: _load_certificate(context, certificate, key)
    if client_ca or section.client_ca_file:  # an empty file is a fault, and not the system's CAs
        option = "client_ca_file" if section.client_ca_file else "client_ca"
        # Bundles may have comments in any encoding. OpenSSL skips comments, but ``ssl`` takes only ASCII.
        yield option, lambda: context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    elif context.verify_mode != ssl.CERT_NONE:  # as in Go, the default is the system's CAs
        yield "client_auth_type", lambda: context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if section.cipher_suites:
        suites = [_CIPHERS[name] for name in section.cipher_suites if name in _CIPHERS]
        if suites:
            yield "cipher_suites", lambda: context.set_ciphers(":".join(suites))
        else:  # the list has no suite of TLS 1.2
            context.minimum_version = ssl.TLSVersion.TLSv1_3
    if not section.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if section.curve_preferences:
        curve = _CURVES[section.curve_preferences[0]]
        yield "curve_preferences", lambda: context.set_ecdh_curve(curve)


def _check_certificates(section: TLSServerConfig) -> Iterator[Contradiction]:
    for option, inline in (
        ("cert", section.cert),
        ("key", section.key.reveal()),
        ("client_ca", section.client_ca),
    ):
        file = getattr(section, f"{option}_file")
        if inline and file:
            yield contradiction(f"is given beside {option}_file; keep one of them", option)
        elif not (inline or file or option == "client_ca"):
            what = f"missing: TLS needs one of {option} and {option}_file"
            yield contradiction(what, f"{option}_file", option)
    if section.client_auth_type not in _CLIENT_AUTH:
        yield contradiction(
            "Python's ssl cannot take a client certificate without verifying it; "
            "use RequireAndVerifyClientCert or VerifyClientCertIfGiven",
            "client_auth_type",
        )
    elif _CLIENT_AUTH[section.client_auth_type] == ssl.CERT_NONE:
        for option in ("client_ca", "client_ca_file", "client_allowed_sans"):
            if getattr(section, option):
                what = "has no effect without a client_auth_type that verifies"
                yield contradiction(what, option, "client_auth_type")


def _check_protocol(section: TLSServerConfig) -> Iterator[Contradiction]:
    for option in ("min_version", "max_version"):
        if getattr(section, option) not in _VERSIONS:
            yield contradiction("is obsolete, and refused by today's OpenSSL; use TLS12 or TLS13", option)
    if section.min_version > section.max_version:
        yield contradiction("is above max_version", "min_version", "max_version")
    suites = set(section.cipher_suites)
    if suites and section.max_version == "TLS12" and not suites & set(_CIPHERS):
        what = "are all of TLS 1.3, which max_version excludes"
        yield contradiction(what, "cipher_suites", "max_version")
    if len(section.curve_preferences) > 1:
        what = "Python's ssl can be told one curve only; give one, or none for its default"
        yield contradiction(what, "curve_preferences")


def _load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    def encrypted() -> str:  # without it, OpenSSL prompts at the terminal and blocks
        raise ValueError("the key is encrypted, and the format has no option for its passphrase")

    # ``ssl`` loads certificates only from files. A temporary file with the bytes that were read makes sure that key and
    # certificate match the digests, even while the files are being replaced.
    with _file_of(key + b"\n" + certificate) as name:
        context.load_cert_chain(name, password=encrypted)


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """Yield the name of a private file with ``content``: in memory where the system supports it, else temporary."""
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
    """Return an IP address in its canonical form, as Go compares it; return other text unchanged."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text
