# SPDX-License-Identifier: Apache-2.0
"""Ask a running exporter whether it is alive: for a container that has no curl.

The question is whether it answers, not whether it lets everybody in. So a demand for a password or a client
certificate, and a rate limit that is reached, count as answers too.

A container runs this every 30 seconds, so it loads nothing that it does not need: no pydantic, and YAML only if there
is a file.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_pool_exporter.errors import ConfigError, EndpointError

from .sources import DEFAULT_ADDRESS, Address, find_file, find_overrides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATH = "/-/healthy"
TIMEOUT_SECONDS = 4.0

# An address that stands for all interfaces → one of them. `localhost` is tried as IPv6 and as IPv4.
_OWN = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is what is replaced
_ANSWERS = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)

# What a file that is no YAML any more says of an option of ``web``.
_LINE = r"(?m)^[ \t]+{}:[ \t]*[\"']?([^\s\"'#]+)"


class _PlainHTTPError(Exception):
    """The server does not speak TLS."""


class Endpoint(NamedTuple):
    """Where an exporter listens, and whether it may speak TLS there."""

    address: Address = DEFAULT_ADDRESS
    may_speak_tls: bool = False


def find_endpoint(path: Path | None, command_line: Mapping[str, str | None]) -> Endpoint:
    """Return where the exporter that was started with this file and command line listens.

    Never raises: the exporter read the file when it was started, and does not end because somebody edits it wrongly
    afterwards. Of a wrong file this takes what it can, and otherwise the default.
    """
    overrides = {option: override.text for option, override in find_overrides(command_line).items()}
    address, config_file = (overrides.get(("web", name)) for name in ("listen_address", "config_file"))
    file = find_file(path)
    if file is not None and (address is None or config_file is None):
        written = _web_of(file)
        address = address if address is not None else written.get("listen_address")
        config_file = config_file if config_file is not None else written.get("config_file")
    try:
        return Endpoint(Address.parse(address or ""), bool(config_file))
    except ValueError:
        return Endpoint(DEFAULT_ADDRESS, bool(config_file))


def _web_of(file: Path) -> Mapping[str, str]:
    """Return the texts of the section ``web``."""
    from .document import Document, read_text  # noqa: PLC0415 - without a file there is no need for YAML

    try:
        text = read_text(file)
    except ConfigError:
        return {}
    document = Document(text)
    web = document.tree.get("web") if isinstance(document.tree, dict) else None
    if not document.is_yaml:
        found = {name: re.search(_LINE.format(name), text) for name in ("listen_address", "config_file")}
        web = {name: match[1] for name, match in found.items() if match}
    return (
        {key: value for key, value in web.items() if isinstance(value, str)} if isinstance(web, dict) else {}
    )


def check(endpoint: Endpoint, timeout: float = TIMEOUT_SECONDS) -> str:
    """Ask the exporter at ``endpoint`` and return its answer in a few words.

    Whether it speaks TLS is found out by trying. Its web configuration file is not read: a running exporter goes on
    when a new content is wrong. ``timeout`` is in seconds, for each step.

    Raises:
        EndpointError: nothing answers there, or what answers is not well.
    """
    address, may_speak_tls = endpoint
    host = _OWN.get(address.host, address.host)
    try:
        if may_speak_tls:
            with contextlib.suppress(_PlainHTTPError):
                context = _unverified_context()
                return _ask_tls(
                    http.client.HTTPSConnection(host, address.port, timeout=timeout, context=context)
                )
        return _ask(http.client.HTTPConnection(host, address.port, timeout=timeout))
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"no answer from {str(address)!r}: {error}") from error


def _ask_tls(connection: http.client.HTTPSConnection) -> str:
    try:
        return _ask(connection)
    except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
        # A server that wants a client certificate does this: asyncio sends no alert. A server that hangs does not.
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


def _unverified_context() -> ssl.SSLContext:
    # The check asks its own container and sends no secret: owner and age of the certificate do not matter.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
