# SPDX-License-Identifier: Apache-2.0
"""The web configuration file: its valid content, and changes of the file while an endpoint runs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import traceback
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.secret import Secret
from sqlalchemy_pool_exporter.sidecar.web.config import Duration, WebConfig
from sqlalchemy_pool_exporter.sidecar.web.tls import TLSServerConfig
from tests.support.logs import messages_of_this_test
from tests.support.web_files import PASSWORD, Files, asked, basic, faults, hashed, users
from tests.support.wire import Numbers, ask, serving

if TYPE_CHECKING:
    import trustme


def test_tls_is_not_switched_while_running(files: Files) -> None:
    """A change that would switch TLS off or on is reported as a fault and not applied."""
    web_config = WebConfig(files.with_tls())
    files.write("")
    assert web_config.current().tls is not None
    assert (web_config.ok, web_config.failures) == (False, 1)
    plain = WebConfig(files.write(""))
    files.with_tls()
    assert plain.current().tls is None
    assert (plain.ok, plain.failures) == (False, 1)


def test_without_a_descriptor_nothing_has_changed(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process without a free descriptor keeps its policy, logs nothing, and sees a change once it can read."""
    web_config = WebConfig(files.with_tls())
    before = web_config.current()
    files.with_tls(min_version="TLS13")

    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", exhausted)
        assert web_config.current() is before
    assert (web_config.ok, web_config.failures) == (True, 0)
    assert messages_of_this_test(caplog.records) == []
    assert web_config.current() is not before


# --------------------------------------------------------------- passwords


def test_hash_of_htpasswd(files: Files) -> None:
    """The example hash in the documentation of Prometheus' exporter-toolkit is accepted."""
    path = files.write(users(a="$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"))
    assert WebConfig(path).current().users


def test_a_bad_change_keeps_the_old(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid change leaves the old file in force, is logged and counted once, and its content is not logged."""
    path = files.write(users(prometheus=hashed()))

    async def scenario() -> None:
        web_config = WebConfig(path)
        async with serving(Numbers(), web_config=web_config) as endpoint:
            files.write("basic_auth_users: {prometheus: hunter2}\n")
            for _ in range(3):
                assert (await ask(endpoint)).status == 401
                assert (await ask(endpoint, headers=basic("prometheus", PASSWORD))).status == 200
            assert (web_config.ok, web_config.failures) == (False, 1)
            path.unlink()
            assert (await ask(endpoint)).status == 401
            assert (web_config.ok, web_config.failures) == (False, 2)
            assert f"{web_config!r}" == f"<WebConfig {str(path)!r} ok=False failures=2>"
            files.write(users(prometheus=hashed("new")))
            assert (await ask(endpoint, headers=basic("prometheus", "new"))).status == 200
            assert (web_config.ok, web_config.failures) == (True, 2)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert caplog.text.count("web configuration not reloaded") == 2
    assert caplog.text.count("web configuration reloaded") == 1
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"a": "doe"}, "basic_auth_users.a: expected a password hashed with bcrypt"),
        ({"a": None, "b": "doe"}, "basic_auth_users.b: expected a password hashed with bcrypt"),
        ({"a": "$2b$10$short"}, "basic_auth_users.a: expected a password hashed with bcrypt"),
        ({"a": "$2x$10$" + "a" * 53}, "basic_auth_users.a: expected a password hashed with bcrypt"),
        ({"a": "$2b$10$" + "9" * 53}, "basic_auth_users.a: expected a password hashed with bcrypt"),
        ({"a": "$2b$19$" + "." * 53}, "basic_auth_users.a: the cost of the hash must be from 4 to 18"),
        ({"a": "$2b$03$" + "." * 53}, "basic_auth_users.a: the cost of the hash must be from 4 to 18"),
        ({"a:b": "$2b$10$" + "." * 53}, "basic_auth_users.(key): no browser or scraper can send a user name"),
        ({"a": ["$2b$10$" + "." * 53]}, "basic_auth_users.a: expected text, got a list"),
        (["a"], "basic_auth_users: expected a mapping, got a list"),
    ],
)
def test_faults_of_users(files: Files, entry: object, fault: str) -> None:
    """A text that is no bcrypt hash, and a hash too slow for a scrape, are refused."""
    (found,) = faults(files.write({"basic_auth_users": entry}))
    assert found.startswith(fault)


# ------------------------------------------------------------- rate limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("1s", 1),
        ("1h2m3.5s", 3723.5),
        ("250ms", 0.25),
        (".5s", 0.5),
        ("5us", 5e-6),
        ("5µs", 5e-6),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    """Durations are written as Go writes them."""
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "-1s", "1 s", "1d", "s", "1s2", "nan", "1e3s", "٣s"])
def test_no_duration(files: Files, text: str) -> None:
    """A duration without a unit, with a sign, or of any other form is refused."""
    (fault,) = faults(files.write({"rate_limit": {"interval": text}}))
    assert fault == "rate_limit.interval: expected a duration with its unit, such as 1s or 250ms, or 0"


def test_a_duration_without_end(files: Files) -> None:
    """A duration that Go cannot hold is refused: an answer 429 could not say when to try again."""
    (fault,) = faults(files.write({"rate_limit": {"interval": f"{'9' * 400}h"}}))
    assert fault == "rate_limit.interval: expected a shorter duration"


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        (
            {"Server": "x"},
            "Server: cannot be set; can be: Content-Security-Policy, Strict-Transport-Security",
        ),
        ({"x-frame-options": "deny"}, "x-frame-options: cannot be set"),
        ({"X-Frame-Options": "allow"}, "X-Frame-Options: expected deny or sameorigin"),
        ({"X-Content-Type-Options": "sniff"}, "X-Content-Type-Options: expected nosniff"),
        (
            {"X-XSS-Protection": "a\r\nSet-Cookie: b"},
            "X-XSS-Protection: has a character that a header cannot have",
        ),
        ({"X-XSS-Protection": "é"}, "X-XSS-Protection: has a character that a header cannot have"),
    ],
)
def test_faults_of_headers(files: Files, headers: dict[str, str], fault: str) -> None:
    """Only the format's headers and values are accepted, and no value can inject another header."""
    (found,) = faults(files.write({"http_server_config": {"headers": headers}}))
    assert found.startswith(f"http_server_config.headers.{fault}")


# ----------------------------------------------------------- the whole file


def test_every_fault_at_once(files: Files) -> None:
    """One error reports the faults of all sections, in the order of the lines."""
    path = files.write(
        """\
        tls_server_config:
          cert_file: none.crt
          min_version: TLS9
        http_server_config:
          headers: {Server: x}
          http3: true
        basic_auth_users: {prometheus: secret}
        rate_limit: {interval: 1, burst: -1}
        auth_excluded_paths: [/-/healthy]
        """
    )
    with pytest.raises(ConfigError) as caught:
        WebConfig(path)
    assert [
        line.strip().partition(": e")[0].partition(": c")[0] for line in str(caught.value).splitlines()
    ] == [
        f"{path}: 9 faults",
        "line 1: tls_server_config.key_file: missing: TLS needs one of key and key_file",
        "line 2: tls_server_config.cert_file",
        "line 3: tls_server_config.min_version",
        "line 5: http_server_config.headers.Server",
        "line 6: http_server_config.http3: unknown key, did you mean 'http2'?",
        "line 7: basic_auth_users.prometheus",
        "line 8: rate_limit.burst",
        "line 8: rate_limit.interval",
        (
            "line 9: auth_excluded_paths: unknown key; known are tls_server_config, http_server_config, "
            "basic_auth_users, rate_limit"
        ),
    ]


@pytest.mark.parametrize("text", ["", "{}", "tls_server_config:\nrate_limit: {interval: 0, burst: 0}\n"])
def test_a_file_that_asks_for_nothing(files: Files, text: str) -> None:
    """A file without settings means plain HTTP without a password."""
    (reply,) = asked(files.write(text), {})
    assert reply.status == 200


def test_paths_are_relative_to_the_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the file's directory, not to the working directory."""
    path = files.with_tls()
    monkeypatch.chdir("/")
    assert WebConfig(path).current().tls is not None


def test_no_secret_is_shown(files: Files) -> None:
    """No key, hash or password is in an error, its traceback or the repr of the settings."""
    leaf = files.issue()
    key = leaf.private_key_pem.bytes().decode()
    hash_ = hashed()
    text = yaml.safe_dump({"tls_server_config": {"cert": "x", "key": key}, **users(a=hash_, b="hunter2")})
    with pytest.raises(ConfigError) as caught:
        WebConfig(files.write(text))
    shown = "".join(traceback.format_exception(caught.value))
    assert all(secret not in shown for secret in (key.splitlines()[1], hash_, "hunter2"))
    settings_ = TLSServerConfig(key=Secret(key))
    assert key.splitlines()[1] not in repr(settings_)


_TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["server.crt", "server.key", ".", "TLS12", "X25519", "1s", "/dev/null", hashed()]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"),
                    *(
                        "cert",
                        "key",
                        "cert_file",
                        "key_file",
                        "client_ca",
                        "client_ca_file",
                        "client_auth_type",
                    ),
                    *(
                        "client_allowed_sans",
                        "min_version",
                        "max_version",
                        "cipher_suites",
                        "curve_preferences",
                    ),
                    *(
                        "prefer_server_cipher_suites",
                        "http2",
                        "headers",
                        "X-Frame-Options",
                        "interval",
                        "burst",
                    ),
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA) -> Files:
    """Return a directory with a certificate, which all examples of a property share."""
    files = Files(tmp_path_factory.mktemp("fuzz"), ca)
    files.issue()
    return files


@hypothesis_settings(deadline=None)
@given(tree=_TREES)
@example(tree={"tls_server_config": {"cert": "\ud800", "key": "\udfff"}})
@example(tree={"tls_server_config": {"cert": "é", "key": "\0", "client_ca": "\u1234"}})
@example(tree={"basic_auth_users": {"\ud800": "x", "": hashed()}})
def test_any_tree(tree: object, shared: Files) -> None:
    """Any YAML gives a policy or a ConfigError, and raises nothing in a running exporter."""
    running = WebConfig(shared.write(""))
    shared.write(tree)
    running.current()
    try:
        WebConfig(shared.path)
    except ConfigError as error:
        assert str(shared.path) in str(error)  # noqa: PT017 - one of two outcomes
        assert running.ok is False


@hypothesis_settings(deadline=None)
@given(
    content=st.binary(max_size=60)
    | st.text(st.sampled_from("-:?&*!|>{}[],# \n\tabc0'\""), max_size=60).map(str.encode)
)
def test_any_bytes(content: bytes, shared: Files) -> None:
    """Any bytes give a policy or a ConfigError."""
    shared.path.write_bytes(content)
    try:
        WebConfig(shared.path)
    except ConfigError as error:
        assert str(shared.path) in str(error)  # noqa: PT017 - one of two outcomes
