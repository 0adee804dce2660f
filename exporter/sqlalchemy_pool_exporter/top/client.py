# SPDX-License-Identifier: Apache-2.0
"""Asks an HTTP server: an endpoint of this project, or a Prometheus. It follows no redirect with a password."""

from __future__ import annotations

import base64
import http.client
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from sqlalchemy_pool_exporter.errors import BoardError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TIMEOUT_SECONDS: Final = 30.0
# An endpoint answers with much less to what the terminal asks for.
_MOST_BYTES: Final = 64 * 1024 * 1024
_IN_PATHS: Final = "/%:@!$&'()*+,;=~"


class Credentials(NamedTuple):
    """What an endpoint asks of its clients. Secrets come from the environment or from files, never from options."""

    user: str = ""
    password: str = ""
    token: str = ""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Return the header that authenticates, if any does.

        Raises:
            BoardError: the token has a character that no header can have.
        """
        if self.token:
            # http.client would raise with the token in its message.
            if not (self.token.isascii() and self.token.isprintable()):
                raise BoardError("the token has a line break or another character that no token has")
            return {"Authorization": f"Bearer {self.token}"}
        if self.user:
            both = f"{self.user}:{self.password}".encode()
            return {"Authorization": f"Basic {base64.b64encode(both).decode()}"}
        return {}

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs.

        Raises:
            BoardError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            files = [str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]
            raise BoardError(f"cannot use {' or '.join(files) or 'the certificates'}: {error}") from error
        return context


class Client:
    """Asks one server.

    Args:
        url: of the server, such as ``http://localhost:10079``; a name and password in it come before the credentials.
        credentials: for the server.
        suffixes: what people copy from their configuration or their browser, and what is left out of the path.

    Raises:
        BoardError: it is no such URL, or a file of the credentials cannot be used.
    """

    def __init__(self, url: str, credentials: Credentials, *, suffixes: Sequence[str]) -> None:
        self._split = split = _split(url)
        path = quote(split.path, safe=_IN_PATHS, errors="surrogateescape")
        for suffix in suffixes:
            path = path.removesuffix(suffix)
        self._path = path
        if split.username is not None:
            credentials = credentials._replace(
                user=unquote(split.username), password=unquote(split.password or ""), token=""
            )
        self._headers = credentials.headers()
        self._context = credentials.context() if split.scheme == "https" else None
        self.name = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{path}"

    def get(self, target: str, accept: str) -> tuple[int, bytes]:
        """Return the status and the body of what is at a path, with its query.

        Raises:
            BoardError: no answer, or one that is too long.
        """
        return self._ask("GET", target, {"Accept": accept}, None)

    def post(self, target: str, form: Mapping[str, str]) -> tuple[int, bytes]:
        """Send a form, and return the status and the body of the answer.

        Raises:
            BoardError: no answer, or one that is too long.
        """
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        return self._ask("POST", target, headers, urlencode(form).encode())

    def _ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        host, port = self._split.hostname or "", self._split.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
            if self._context is None
            else http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=self._context)
        )
        try:
            connection.request(method, self._path + target, body, {**headers, **self._headers})
            response = connection.getresponse()
            answer = response.read(_MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise BoardError(f"no answer from {self.name}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if len(answer) > _MOST_BYTES:
            raise BoardError(f"the answer of {self.name} has more than {_MOST_BYTES // 2**20} MiB")
        return response.status, answer


def _split(url: str) -> SplitResult:
    try:
        split = urlsplit(url if "://" in url else f"http://{url}")
        is_usable = split.scheme in {"http", "https"} and bool(split.hostname)
        _ = split.port, (split.hostname or "").encode("idna")  # raises ValueError
    except ValueError:
        is_usable = False
    if not is_usable:
        raise BoardError("the URL is none of HTTP, such as http://localhost:10079")
    return split


def explained(status: int) -> str:
    """Return what an HTTP status other than 200 means for the one who asked."""
    if status == HTTPStatus.UNAUTHORIZED:
        return "Unauthorized: give a user with its password, or a token"
    if status == HTTPStatus.NOT_FOUND:
        return "Not Found: is it an exporter of this version?"
    return http.client.responses.get(status, "")
