# SPDX-License-Identifier: Apache-2.0
"""Who may ask, and how often: basic auth and rate limit of a web configuration file, as aiohttp middleware."""

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
_REMEMBERED = 100
_BCRYPT_BYTES = 72  # bcrypt reads no further, and the library raises


class BasicAuth:
    """Checks credentials; what was checked once costs no bcrypt again.

    Mutable state: ``_right`` and ``_wrong``, digests of credentials that were checked. They are kept apart so that
    somebody who guesses cannot push out what the scraper sends.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)  # the digests are of no use outside this process
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}
        self._one_at_a_time = asyncio.Lock()  # as the toolkit does: guesses must not take every core

    async def admits(self, users: Mapping[bytes, bytes], authorization: str) -> bool:
        """Tell whether the ``Authorization`` header is that of one of ``users`` (name → bcrypt hash)."""
        credentials = _credentials(authorization)
        if credentials is None or len(credentials[1]) > _BCRYPT_BYTES:
            return False  # without a bcrypt, whoever the user is: that tells nothing
        user, password = credentials
        hashed = users.get(user) or self._stand_in(user, users)
        digest = self._digest(user, hashed, password)
        if digest not in self._right and digest not in self._wrong:
            async with self._one_at_a_time:
                if digest not in self._right and digest not in self._wrong:  # nor meanwhile
                    right = await run_in_daemon_thread(lambda: _matches(password, hashed)) and user in users
                    _remember(self._right if right else self._wrong, digest)
        return digest in self._right

    def _stand_in(self, user: bytes, users: Mapping[bytes, bytes]) -> bytes:
        """Return the hash an unknown ``user`` is checked against, so that the answer takes as long as for a known one.

        It is one of the known ones', always the same for the same name: with costs that differ, an unknown name is as
        slow as some known one, and stays so.
        """
        hashes = sorted(users.values())
        return hashes[int.from_bytes(self._digest(user)[:8], "big") % len(hashes)]

    def _digest(self, *parts: bytes) -> bytes:
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, message, hashlib.sha256)


class RateLimiter:
    """A token bucket: full at first, a token each ``interval`` seconds. Mutable state: ``_tokens`` as of ``_then``."""

    def __init__(self, limit: RateLimit, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._tokens, self._then = float(limit.burst), now()

    def allows(self) -> bool:
        """Take a token if there is one."""
        if not self.limit.interval:
            return True
        now = self._now()
        self._tokens = min(self.limit.burst, self._tokens + (now - self._then) / self.limit.interval)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def guard(app: web.Application, web_config: WebConfig) -> None:
    """Let every request of ``app`` pass the limit first, then the headers, then the password, as the toolkit does."""
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
    except ValueError:  # a release of the library that refuses a NUL, or whatever else it does not like
        return False


def _remember(digests: dict[bytes, None], digest: bytes) -> None:
    while len(digests) >= _REMEMBERED:
        del digests[next(iter(digests))]  # the oldest
    digests[digest] = None
