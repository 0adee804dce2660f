# SPDX-License-Identifier: Apache-2.0
"""Passwords, rate limit and headers of a web configuration file, as a client sees them."""

from __future__ import annotations

import asyncio
import threading

import bcrypt
import pytest

from sqlalchemy_pool_exporter.sidecar.web.auth import BasicAuth, RateLimiter
from sqlalchemy_pool_exporter.sidecar.web.config import Duration, RateLimit, WebConfig
from tests.support.web_files import PASSWORD, Files, asked, basic, hashed, users
from tests.support.wire import Numbers, ask, serving


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
def test_password(files: Files, prefix: str) -> None:
    """The right password is accepted with each prefix of hashes; no or a wrong password or an unknown user gets 401."""
    path = files.write(users(prometheus=hashed(prefix=prefix)))
    replies = asked(
        path, {}, basic("prometheus", PASSWORD), basic("prometheus", "wrong"), basic("nobody", PASSWORD)
    )
    assert [reply.status for reply in replies] == [401, 200, 401, 401]
    for reply in replies:
        assert ("www-authenticate" in reply.headers) is (reply.status == 401)
        assert PASSWORD.encode() not in reply.body
    assert replies[0].headers["www-authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize("target", ["/", "/metrics", "/-/healthy", "/-/ready", "/-/reload", "/nowhere"])
def test_every_path_is_guarded(files: Files, target: str) -> None:
    """Without the password every path gets 401, whether it exists or not."""
    (reply,) = asked(files.write(users(prometheus=hashed())), {}, target=target)
    assert reply.status == 401


@pytest.mark.parametrize(
    ("password", "status"),
    [
        (b"x" * 72, 200),
        (b"x" * 73, 401),
        (b"x" * 4000, 401),
        (b"", 401),
        (b"a\0b", 401),
        (b"\xff\xfe", 401),
        ("größe".encode(), 401),
        (b"x:" * 10, 401),
    ],
)
def test_odd_passwords(files: Files, password: bytes, status: int) -> None:
    """A password of any length and any bytes is accepted or refused, never a server error."""
    (reply,) = asked(files.write(users(prometheus=hashed(b"x" * 72))), basic("prometheus", password))
    assert status == reply.status


def test_a_password_too_long_costs_nothing(files: Files, checks: list[tuple[bytes, str]]) -> None:
    """A password that is too long for bcrypt is refused without a bcrypt check, for known and unknown users."""
    path = files.write(users(prometheus=hashed()))
    replies = asked(path, basic("prometheus", "x" * 73), basic("nobody", "x" * 73))
    assert [reply.status for reply in replies] == [401, 401]
    assert checks == []


@pytest.mark.parametrize(
    ("user", "password"), [("größe", "naïve"), ("a", "with:colon"), ("a b", " spaces "), ("a", "")]
)
def test_names_and_passwords_of_any_text(files: Files, user: str, password: str) -> None:
    """Names and passwords are UTF-8 text; a password may contain colons."""
    (reply,) = asked(files.write({"basic_auth_users": {user: hashed(password)}}), basic(user, password))
    assert reply.status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic ====",
        "Bearer abc",
        "Basic bm9jb2xvbg==",
        "basic\tx",
        "Digest a=b",
    ],
)
def test_headers_that_are_none(files: Files, authorization: str) -> None:
    """A malformed `Authorization` header gets 401, as a missing one does."""
    (reply,) = asked(files.write(users(prometheus=hashed())), {"Authorization": authorization})
    assert reply.status == 401


def test_scheme_in_any_case(files: Files) -> None:
    """The name of the scheme is case-insensitive."""
    header = basic("prometheus", PASSWORD)["Authorization"].replace("Basic", "bAsIc")
    (reply,) = asked(files.write(users(prometheus=hashed())), {"Authorization": header})
    assert reply.status == 200


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, str]]:
    """Return the list of the bcrypt checks, each with its hash and the name of its thread."""
    seen: list[tuple[bytes, str]] = []
    real = bcrypt.checkpw

    def checkpw(password: bytes, hashed_password: bytes) -> bool:
        seen.append((hashed_password, threading.current_thread().name))
        return real(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return seen


def test_a_scrape_does_not_cost_a_bcrypt(files: Files, checks: list[tuple[bytes, str]]) -> None:
    """Each pair of credentials costs one bcrypt check, which does not block the event loop."""
    path = files.write(users(prometheus=hashed()))
    right, wrong, unknown = (
        basic("prometheus", PASSWORD),
        basic("prometheus", "no"),
        basic("nobody", PASSWORD),
    )
    replies = asked(path, right, right, wrong, wrong, unknown, unknown, right)
    assert [reply.status for reply in replies] == [200, 200, 401, 401, 401, 401, 200]
    assert len(checks) == 3
    assert threading.current_thread().name not in {thread for _, thread in checks}


def test_guessing_does_not_push_out_what_is_right(files: Files, checks: list[tuple[bytes, str]]) -> None:
    """Wrong guesses do not evict the scraper's password from the cache, and the cache of wrong ones is bounded."""

    async def scenario() -> None:
        auth = BasicAuth()
        known = {b"prometheus": hashed().encode()}
        assert await auth.admits(known, basic("prometheus", PASSWORD)["Authorization"])
        for i in range(300):
            assert not await auth.admits(known, basic("prometheus", f"guess {i}")["Authorization"])
        before = len(checks)
        assert await auth.admits(known, basic("prometheus", PASSWORD)["Authorization"])
        assert len(checks) == before == 301
        assert len(auth._wrong) <= 100

    asyncio.run(scenario())
    assert files.path.exists() is False


def test_an_unknown_user_costs_what_a_known_one_does(files: Files, checks: list[tuple[bytes, str]]) -> None:
    """An unknown name costs one bcrypt check at the cost of some user's hash, the same cost at every attempt."""
    path = files.write(users(cheap=hashed(cost=4), dear=hashed(cost=6)))
    asked(path, *(basic(f"nobody{i}", f"{attempt}") for i in range(40) for attempt in range(2)))
    costs = [int(hash_[4:6]) for hash_, _ in checks]
    assert len(costs) == 80
    assert set(costs) == {4, 6}  # all names get the same cost with a probability of 1 in 2 ** 39
    assert costs[0::2] == costs[1::2]


def test_simultaneous_logins_cost_one_check(files: Files, checks: list[tuple[bytes, str]]) -> None:
    """The same credentials, sent many times at once, are checked once."""
    path = files.write(users(prometheus=hashed(cost=6)))

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            headers = basic("prometheus", PASSWORD)
            replies = await asyncio.gather(*(ask(endpoint, headers=headers) for _ in range(20)))
            assert {reply.status for reply in replies} == {200}

    asyncio.run(scenario())
    assert len(checks) == 1


def test_users_are_changed_while_running(files: Files) -> None:
    """A changed file applies at the next request: the new password is valid, and the old one is not."""
    path = files.write(users(prometheus=hashed("old")))

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            assert (await ask(endpoint, headers=basic("prometheus", "old"))).status == 200
            files.write(users(prometheus=hashed("new")))
            assert (await ask(endpoint, headers=basic("prometheus", "old"))).status == 401
            assert (await ask(endpoint, headers=basic("prometheus", "new"))).status == 200
            files.write(users(prometheus=hashed("new"), other=hashed("other")))
            assert (await ask(endpoint, headers=basic("other", "other"))).status == 200
            files.write(users(other=hashed("other")))
            assert (await ask(endpoint, headers=basic("prometheus", "new"))).status == 401

    asyncio.run(scenario())


@pytest.mark.parametrize("target", ["/metrics", "/nowhere", "/-/reload"])
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "more", "nothing, 100-continue", ""])
@pytest.mark.parametrize("sent", [{}, basic("prometheus", "wrong"), basic("prometheus", PASSWORD)])
def test_an_expectation_is_not_answered_before_the_password(
    files: Files, target: str, expect: str, sent: dict[str, str]
) -> None:
    """With any ``Expect``, the one response is that to the same request without it: 401 without the password."""
    path = files.write(users(prometheus=hashed()))
    without, reply = asked(path, sent, {"Expect": expect, **sent}, target=target)
    assert reply.status == without.status
    assert (reply.status == 401) == (sent != basic("prometheus", PASSWORD))


def test_an_expectation_does_not_spare_the_rate_limit(files: Files) -> None:
    """A request with an unknown ``Expect`` takes a token, as any request."""
    path = files.write({"rate_limit": {"interval": "1h", "burst": 1}})
    assert [200, 429] == [reply.status for reply in asked(path, {"Expect": "more"}, {})]


def test_rate_limiter() -> None:
    """The bucket starts full, gains a token each interval, and holds at most `burst` tokens."""
    now = [100.0]
    limiter = RateLimiter(RateLimit(interval=Duration(2.0), burst=3), lambda: now[0])
    assert [limiter.allows() for _ in range(5)] == [True, True, True, False, False]
    now[0] += 1.9
    assert limiter.allows() is False
    now[0] += 0.2
    assert [limiter.allows(), limiter.allows()] == [True, False]
    now[0] += 1000
    assert [limiter.allows() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("interval", "burst", "allowed"), [(0.0, 0, True), (0.0, 5, True), (1.0, 0, False)])
def test_limits_at_the_edge(interval: float, burst: int, *, allowed: bool) -> None:
    """As in Prometheus' exporter-toolkit, an interval of 0 is no limit, and a burst of 0 refuses every request."""
    limiter = RateLimiter(RateLimit(interval=Duration(interval), burst=burst), lambda: 0.0)
    assert [limiter.allows() for _ in range(100)] == [allowed] * 100


def test_rate_limit(files: Files) -> None:
    """Beyond the burst every request gets 429, of any user and for any path; a changed limit applies at once."""
    path = files.write({"rate_limit": {"interval": "1h", "burst": 2}, **users(prometheus=hashed())})

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            headers = basic("prometheus", PASSWORD)
            assert (await ask(endpoint, headers=headers)).status == 200
            assert (await ask(endpoint)).status == 401
            limited = await ask(endpoint, "/", headers=headers)
            assert (limited.status, limited.headers["retry-after"]) == (429, "3600")
            files.write({"rate_limit": {"interval": 0, "burst": 2}, **users(prometheus=hashed())})
            assert (await ask(endpoint)).status == 401

    asyncio.run(scenario())


def test_headers(files: Files) -> None:
    """Every answer, even an error, has the file's headers, which override its own; a blank header is not sent."""
    headers = {
        "X-Frame-Options": "deny",
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "X-Content-Type-Options": "nosniff",
        "X-XSS-Protection": 1,
        "Content-Security-Policy": "default-src 'self'",
    }
    path = files.write({"http_server_config": {"http2": False, "headers": headers}, **users(a=hashed())})

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
            for target, status in (("/", 200), ("/metrics", 200), ("/nowhere", 404)):
                reply = await ask(endpoint, target, headers=basic("a", PASSWORD))
                assert status == reply.status
                assert {name: reply.headers[name.lower()] for name in headers} == {
                    **headers,
                    "X-XSS-Protection": "1",
                }
            assert (await ask(endpoint)).headers["x-frame-options"] == "deny"
            fewer = {"X-Frame-Options": "", "X-XSS-Protection": ""}
            files.write({"http_server_config": {"headers": fewer}, **users(a=hashed())})
            assert "x-frame-options" not in (await ask(endpoint)).headers

    asyncio.run(scenario())
