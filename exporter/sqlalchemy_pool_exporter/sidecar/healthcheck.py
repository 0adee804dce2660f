# SPDX-License-Identifier: Apache-2.0
"""Ask a running exporter whether it is alive, for containers that have no curl.

The exporter is healthy if it answers. So a refusal for lack of a password or a client certificate, or because of the
rate limit, counts as healthy.

A container runs this every 30 seconds. To be fast, this module imports no pydantic, and YAML only if there is a file.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import ConfigError, EndpointError

from .sources import DEFAULT_ADDRESS, find_file, find_overrides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HEALTH_PATH = "/-/healthy"
_TIMEOUT_SECONDS = 4.0

_HEALTHY_STATUSES = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)

# Line of an option of ``web``, for a file that is no longer valid YAML.
_LINE = r"(?m)^[ \t]+{}:[ \t]*[\"']?([^\s\"'#]+)"


class _PlainHTTPError(Exception):
    """The server does not speak TLS."""


class Endpoint(NamedTuple):
    """The address of an exporter, and whether it may speak TLS."""

    address: Address = DEFAULT_ADDRESS
    may_speak_tls: bool = False


def find_endpoint(path: Path | None, command_line: Mapping[str, str | None]) -> Endpoint:
    """Return the endpoint of the exporter that was started with this file and command line.

    Never raises, because a running exporter does not end when its file becomes wrong. From a wrong file this takes the
    options that it can read, and the defaults for the others.
    """
    overrides = {option: override.text for option, override in find_overrides(command_line).items()}
    address, config_file = (overrides.get(("web", name)) for name in ("listen_address", "config_file"))
    file = find_file(path)
    if file is not None and (address is None or config_file is None):
        written = _web_options(file)
        address = address if address is not None else written.get("listen_address")
        config_file = config_file if config_file is not None else written.get("config_file")
    try:
        return Endpoint(Address.parse(address or ""), bool(config_file))
    except ValueError:
        return Endpoint(DEFAULT_ADDRESS, bool(config_file))


def _web_options(file: Path) -> Mapping[str, str]:
    """Return those options of the section ``web`` that are text."""
    from .document import Document, read_text  # noqa: PLC0415 - imports YAML, which is needed for a file only

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


def check(endpoint: Endpoint, timeout: float = _TIMEOUT_SECONDS) -> str:
    """Ask the exporter at ``endpoint`` and return its answer in a few words.

    If the exporter may speak TLS, the check tries TLS first and then plain HTTP. It does not read the web configuration
    file, because the exporter keeps the old settings when a new file is wrong. ``timeout`` is in seconds per step.

    Raises:
        EndpointError: there is no answer, or the answer is an error.
    """
    address, may_speak_tls = endpoint
    host, port = address.local
    try:
        if may_speak_tls:
            with contextlib.suppress(_PlainHTTPError):
                context = _unverified_context()
                return _ask_tls(http.client.HTTPSConnection(host, port, timeout=timeout, context=context))
        return _ask(http.client.HTTPConnection(host, port, timeout=timeout))
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"no answer from {str(address)!r}: {error}") from error


def _ask_tls(connection: http.client.HTTPSConnection) -> str:
    try:
        return _ask(connection)
    except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
        # The exporter refuses a client without certificate like this, because asyncio sends no TLS alert. A server that
        # hangs closes nothing.
        return "closes the connection of a client without certificate"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise _PlainHTTPError from None
        raise


def _ask(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("GET", _HEALTH_PATH, headers={"Connection": "close"})
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    answer = f"{response.status} {response.reason}"
    if response.status not in _HEALTHY_STATUSES:
        raise EndpointError(f"{_HEALTH_PATH} answers {answer}")
    return answer


def _unverified_context() -> ssl.SSLContext:
    # The check connects to its own container and sends no secret, so the certificate need not be verified.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
