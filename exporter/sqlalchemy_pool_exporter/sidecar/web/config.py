# SPDX-License-Identifier: Apache-2.0
"""``web.config_file``: TLS, basic auth, headers and rate limit, in the format of Prometheus' exporter-toolkit.

The format is https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md, so that one file
serves all exporters of a host. Four differences are intended. If a new file is wrong, the old one stays in force. It
also stays if the new one would open what was closed: an editor, a full disk or a failed copy leaves a file that is cut
off and valid, so only a restart takes away TLS or the last password. Options that Python's ``ssl`` cannot apply are
refused (see ``tls``). HTTP/2 may be enabled, but is not spoken.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.document import Document, read_regular, read_text
from sqlalchemy_pool_exporter.sidecar.validation import (
    Context,
    Contradiction,
    Section,
    contradiction,
    drop_empty_keys,
    parsed,
    report,
    validate,
)

from .tls import SecretText, ServerTLS, TLSServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_logger = logging.getLogger(__name__)

# Header → its allowed values; () allows any. Names and values are those of the toolkit.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}

# 22 characters of salt, the last of which has only two bits, and 31 of hash.
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_MIN_COST, _MAX_COST = 4, 18

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = (2**63 - 1) * 1e-9  # seconds; Go counts nanoseconds in 64 bits
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


class Duration(float):
    """Seconds, in the file a duration of Go."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Parse a text such as ``1s``, ``1m30s``, ``250ms`` or ``0``."""
        if text != "0" and not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
            raise ValueError("expected a duration with its unit, such as 1s or 250ms, or 0")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
        if seconds > _LONGEST:
            raise ValueError("expected a shorter duration")
        return cls(seconds)


GoDuration = Annotated[
    Duration,
    parsed(Duration, Duration.parse),
    WithJsonSchema({"type": "string", "expects": "a duration such as 1s or 250ms"}),
]


class HTTPServerConfig(Section):
    """``http_server_config`` as written."""

    http2: bool = True
    headers: Annotated[dict[str, str], BeforeValidator(drop_empty_keys)] = Field(default={})

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Allow only the headers of the format, and their allowed values."""
        del given, context
        for name, value in self.headers.items():
            option = ("headers", name)
            if name not in _HEADERS:
                yield contradiction(f"cannot be set; can be: {', '.join(_HEADERS)}", option)
            elif value and _HEADERS[name] and value not in _HEADERS[name]:
                yield contradiction(f"expected {' or '.join(_HEADERS[name])}", option)
            elif not value.isprintable() or not value.isascii():
                yield contradiction("has a character that a header cannot have", option)


class RateLimit(Section):
    """``rate_limit``: one token each ``interval`` seconds, at most ``burst``; no limit if the interval is 0."""

    interval: GoDuration = Duration(0)
    burst: int = Field(default=0, ge=0, le=1_000_000)


class WebFile(Section):
    """The whole file as written."""

    tls_server_config: TLSServerConfig = TLSServerConfig()
    http_server_config: HTTPServerConfig = HTTPServerConfig()
    basic_auth_users: Annotated[dict[str, SecretText], BeforeValidator(drop_empty_keys)] = Field(default={})
    rate_limit: RateLimit = RateLimit()

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Allow only user names that a client can send, and hashes that can be checked during a scrape."""
        del given, context
        for name, secret in self.basic_auth_users.items():
            option = ("basic_auth_users", name)
            match = _BCRYPT.fullmatch(secret.reveal())
            if ":" in name:
                yield contradiction("no browser or scraper can send a user name with a colon", option)
            if match is None:
                what = "expected a password hashed with bcrypt, as `htpasswd -nBC 10 ''` makes it"
                yield contradiction(what, option)
            elif not _MIN_COST <= int(match[1]) <= _MAX_COST:
                what = (
                    f"the cost of the hash must be from {_MIN_COST} to {_MAX_COST}; "
                    "each step doubles the time it takes"
                )
                yield contradiction(what, option)


class Policy(NamedTuple):
    """The file as it is applied. ``users`` maps names to bcrypt hashes, both as bytes."""

    tls: ServerTLS | None
    users: Mapping[bytes, bytes]
    headers: Mapping[str, str]
    rate_limit: RateLimit
    written: WebFile

    @property
    def protections(self) -> frozenset[str]:
        """The options in effect that keep clients out."""
        tls = self.written.tls_server_config
        needed = {
            "basic_auth_users": self.users,
            "tls_server_config": self.tls,
            "tls_server_config.client_auth_type": tls.verifies_clients,
            "tls_server_config.client_allowed_sans": tls.client_allowed_sans is not None,
        }
        return frozenset(option for option, given in needed.items() if given)


class WebConfig:
    """A web configuration file that is loaded again when it, or a file it names, has changed.

    Like the toolkit, `current` compares the contents at every handshake and every request: time stamps of a file system
    are too coarse to distinguish two writes, and reading four small files costs less than parsing one request.

    Mutable state: ``_policy`` (in force) and ``_content`` (of its file), ``_seen`` (digest of each file at the last
    load), ``failures`` and ``refusal``. It belongs to the event loop's thread.
    """

    def __init__(self, path: Path) -> None:
        """Load the file at ``path``; raises ConfigError, which lists every fault."""
        self._path = path
        self._seen: dict[Path, bytes] = {}
        self._policy, self._content = self._load()
        self.failures = 0  # number of new contents that were refused
        self.refusal: ConfigError | None = None  # why the policy in force is older than the file, if it is

    @property
    def ok(self) -> bool:
        """Whether the policy in force is that of the file."""
        return self.refusal is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._path)!r} ok={self.ok} failures={self.failures}>"

    @property
    def policy(self) -> Policy:
        """The policy in force since the last call of `current`."""
        return self._policy

    def current(self) -> Policy:
        """Load the files again if they have changed, and return the policy in force.

        Never raises: a wrong new content is logged and counted once, and the old policy stays.
        """
        if all(_is_unchanged(path, digest) for path, digest in self._seen.items()):
            return self._policy
        try:
            policy, content = self._load()
            self._check_change(policy, content)
        except ConfigError as error:
            self.failures += 1
            self.refusal = error
            _logger.error("web configuration not reloaded, the old one stays in force: %s", error)  # noqa: TRY400
        else:
            self._policy, self._content, self.refusal = policy, content, None
            _logger.info("web configuration reloaded from %r", str(self._path))
        return self._policy

    def _check_change(self, new: Policy, content: bytes) -> None:
        old = self._policy
        if old.tls is None and new.tls is not None:
            what = (
                "tls_server_config: cannot be added while running, since every client would have to change."
            )
            raise self._refused(what)
        if lost := sorted(old.protections - new.protections):
            raise self._refused(
                f"{', '.join(lost)}: cannot be taken away while running; was the file cut off?"
            )
        # A cut that takes only some of the users opens nothing: the last one of several may be removed.
        is_beginning = content != self._content and self._content.startswith(content)
        if is_beginning and _without_users(new) != _without_users(old):
            raise self._refused("is the beginning of the file in force, with other settings; was it cut off?")

    def _refused(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path}: {what} Mend the file, or restart to apply it as it is")

    def _load(self) -> tuple[Policy, bytes]:
        self._seen = {}
        text = read_text(self._path, self._read)
        document = Document(text, untyped=True)
        context = Context(self._path.parent, self._read)
        file, issues = validate(WebFile, document.tree, context, document.place)
        issues += document.issues
        if issues or file is None:
            raise report(str(self._path), issues)
        users = {name.encode(): secret.reveal().encode() for name, secret in file.basic_auth_users.items()}
        headers = {name: value for name, value in file.http_server_config.headers.items() if value}
        return Policy(file.tls_server_config.server_tls, users, headers, file.rate_limit, file), text.encode()

    def _read(self, path: Path) -> bytes:
        self._seen[path] = b""
        content = read_regular(path)  # a pipe would block the event loop
        self._seen[path] = hashlib.sha256(content).digest()
        return content


def _without_users(policy: Policy) -> dict[str, Any]:
    return policy.written.model_dump(exclude={"basic_auth_users"})


def _is_unchanged(path: Path, digest: bytes) -> bool:
    """Return whether the file has the content with this digest; an empty digest is that of an unreadable file."""
    try:
        return hashlib.sha256(read_regular(path)).digest() == digest
    except OSError as error:
        # A process without a free descriptor cannot tell. The file counts as unchanged until it can be read.
        return not digest or error.errno in (errno.EMFILE, errno.ENFILE)
    except ValueError:
        return not digest
