# SPDX-License-Identifier: Apache-2.0
"""Ask a running exporter whether it is alive: for a container that has no curl.

What is asked for is that it answers, not that it lets everybody in: a password or a client certificate that is asked
for, and a rate limit that is reached, are answers too.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.errors import EndpointError

if TYPE_CHECKING:
    from .config import Web

PATH = "/-/healthy"
TIMEOUT_SECONDS = 4.0

# An address that stands for all interfaces → one of them. `localhost` is tried as IPv6 and as IPv4.
_OWN = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is what is replaced
_ANSWERS = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)


class _PlainHTTPError(Exception):
    """The server does not speak TLS."""


def check(settings: Web, timeout: float = TIMEOUT_SECONDS) -> str:
    """Ask the exporter that listens as ``settings`` say and return its answer in a few words.

    With a web configuration file it can speak TLS or not. The file is not read: a running exporter goes on when a new
    content is wrong, and must not be called dead for it. ``timeout`` is in seconds, for each step.

    Raises:
        EndpointError: nobody answers there, or what answers is not well.
    """
    host = _OWN.get(settings.listen_address.host, settings.listen_address.host)
    port = settings.listen_address.port
    try:
        if settings.config_file is not None:
            with contextlib.suppress(_PlainHTTPError):
                return _ask_tls(http.client.HTTPSConnection(host, port, timeout=timeout, context=_context()))
        return _ask(http.client.HTTPConnection(host, port, timeout=timeout))
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"no answer from {str(settings.listen_address)!r}: {error}") from error


def _ask_tls(connection: http.client.HTTPSConnection) -> str:
    try:
        return _ask(connection)
    except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
        # So a server that wants a client certificate, and whose event loop runs: asyncio sends no alert. One that hangs
        # does not hang up.
        return "hangs up on a client without certificate"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise _PlainHTTPError from None
        raise


def _ask(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("GET", PATH, headers={"Connection": "close"})
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    said = f"{response.status} {response.reason}"
    if response.status not in _ANSWERS:
        raise EndpointError(f"{PATH} answers {said}")
    return said


def _context() -> ssl.SSLContext:
    # It asks its own container and sends no secret: whose certificate that is does not matter, nor its age.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
