# SPDX-License-Identifier: Apache-2.0
"""Basic auth and rate limit of a web configuration file, as aiohttp middleware."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import math
import os
import time
from typing import TYPE_CHECKING

import bcrypt
from aiohttp import web

from .daemon_thread import run_in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.typedefs import Handler, Middleware

    from .config import RateLimit, WebConfig

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="sqlalchemy-pool-exporter", charset="UTF-8"'}
_MAX_REMEMBERED = 100
_BCRYPT_BYTES = 72  # bcrypt ignores further bytes, and the library refuses them


class BasicAuth:
    """Checks credentials, and remembers the result, so that a scraper costs one bcrypt and not one for each request.

    Mutable state: ``_right`` and ``_wrong``, digests of credentials that were checked. They are separate, so that a
    client that guesses passwords cannot evict the digest of the scraper's.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)  # makes the digests useless outside this process
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}
        self._one_at_a_time = asyncio.Lock()  # as in the toolkit, so that guesses use one core at most

    async def admits(self, users: Mapping[bytes, bytes], authorization: str) -> bool:
        """Return whether the ``Authorization`` header is valid for one of ``users`` (name → bcrypt hash)."""
        credentials = _credentials(authorization)
        if credentials is None or len(credentials[1]) > _BCRYPT_BYTES:
            return False  # without a bcrypt for every user, known or not, so the time tells nothing
        user, password = credentials
        hashed = users.get(user) or self._decoy(user, users)
        digest = self._digest(user, hashed, password)
        if digest not in self._right and digest not in self._wrong:
            async with self._one_at_a_time:
                if (
                    digest not in self._right and digest not in self._wrong
                ):  # another request may have checked it
                    right = await run_in_daemon_thread(lambda: _matches(password, hashed)) and user in users
                    _remember(self._right if right else self._wrong, digest)
        return digest in self._right

    def _decoy(self, user: bytes, users: Mapping[bytes, bytes]) -> bytes:
        """Return the hash for checking an unknown ``user``, so that it takes as long as checking a known one.

        It is the hash of a known user, always the same one for the same name. So an unknown name is as slow as some
        known one, each time, even if the costs of the hashes differ.
        """
        hashes = sorted(users.values())
        return hashes[int.from_bytes(self._digest(user)[:8], "big") % len(hashes)]

    def _digest(self, *parts: bytes) -> bytes:
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, message, hashlib.sha256)


class RateLimiter:
    """A token bucket: full at the start, one token each ``interval`` seconds.

    Mutable state: ``_tokens``, counted at ``_counted_at``.
    """

    def __init__(self, limit: RateLimit, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._tokens, self._counted_at = float(limit.burst), now()

    def allows(self) -> bool:
        """Take a token; return False if there is none."""
        if not self.limit.interval:
            return True
        now = self._now()
        self._tokens = min(self.limit.burst, self._tokens + (now - self._counted_at) / self.limit.interval)
        self._counted_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def guard(app: web.Application, web_config: WebConfig) -> None:
    """Check the rate limit, then the password of every request of ``app``, and set the headers of every response.

    The order is that of the exporter-toolkit.
    """
    auth = BasicAuth()
    limiter = RateLimiter(web_config.policy.rate_limit)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal limiter
        policy = web_config.current()
        if policy.rate_limit != limiter.limit:
            limiter = RateLimiter(policy.rate_limit)
        if not limiter.allows():
            raise web.HTTPTooManyRequests(headers={"Retry-After": str(math.ceil(policy.rate_limit.interval))})
        if policy.users and not await auth.admits(policy.users, request.headers.get("Authorization", "")):
            raise web.HTTPUnauthorized(headers=_CHALLENGE)
        return await handler(request)

    async def with_headers(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(web_config.policy.headers)

    middleware: Middleware = guarded
    app.middlewares.insert(0, middleware)
    app.on_response_prepare.append(with_headers)


def _credentials(authorization: str) -> tuple[bytes, bytes] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:  # some releases of the library refuse a NUL in a password
        return False


def _remember(digests: dict[bytes, None], digest: bytes) -> None:
    while len(digests) >= _MAX_REMEMBERED:
        del digests[next(iter(digests))]  # the oldest
    digests[digest] = None
