# SPDX-License-Identifier: Apache-2.0
"""A changed web configuration never opens a running server: one that is cut off looks like one that asks for less."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.web.config import Policy, WebConfig
from tests.support.sidecar import Sidecar
from tests.support.web_files import PASSWORD, Files, basic, hashed, users
from tests.support.wire import Numbers, ask, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TLS = {
    "cert_file": "server.crt",
    "key_file": "server.key",
    "min_version": "TLS13",
    "client_auth_type": "RequireAndVerifyClientCert",
    "client_ca_file": "ca.crt",
    "client_allowed_sans": ["prometheus", "grafana"],
}
LIMIT = {"interval": "1m30s", "burst": 10}
HEADERS = {"headers": {"X-Frame-Options": "deny", "Strict-Transport-Security": "max-age=31536000"}}
USERS = {"alice": hashed("alice"), "bob": hashed("bob")}
SECTIONS = {
    "tls_server_config": TLS,
    "basic_auth_users": USERS,
    "rate_limit": LIMIT,
    "http_server_config": HEADERS,
}
ORDERS = (
    ("tls_server_config", "basic_auth_users", "rate_limit", "http_server_config"),
    ("basic_auth_users", "http_server_config", "tls_server_config"),
    ("rate_limit", "basic_auth_users"),
    ("http_server_config", "rate_limit", "tls_server_config"),
    ("basic_auth_users",),
)


@pytest.fixture
def files(files: Files) -> Files:
    """Return a directory with a certificate, its key and a CA."""
    files.issue()
    files.ca.cert_pem.write_to_path(files.directory / "ca.crt")
    return files


def text_of(order: tuple[str, ...], **style: Any) -> str:
    text: str = yaml.safe_dump({name: SECTIONS[name] for name in order}, sort_keys=False, **style)
    return text


def is_as_strong(now: Policy, before: Policy) -> bool:
    """Return whether a policy admits nobody whom the one before refused, and sends and limits the same."""
    is_subset = dict(now.users).items() <= dict(before.users).items() and bool(now.users) == bool(
        before.users
    )
    return is_subset and now.written.model_dump(exclude={"basic_auth_users"}) == before.written.model_dump(
        exclude={"basic_auth_users"}
    )


@pytest.mark.parametrize("flow", [False, True], ids=["block", "flow"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(name[:5] for name in order))
def test_no_truncation_weakens_the_policy(files: Files, order: tuple[str, ...], *, flow: bool) -> None:
    """Cut at any byte, a file leaves the policy of a running server as strong as it was, or says what is wrong."""
    text = text_of(order, default_flow_style=flow)
    whole = text.encode()
    running = WebConfig(files.write(text))
    before = running.policy
    for length in range(len(whole)):
        files.path.write_bytes(whole[:length])
        assert is_as_strong(running.current(), before), whole[:length].decode()
        if running.ok:  # it asks for as much; of several users, some may be gone
            files.path.write_bytes(whole)
            assert running.current().users == before.users
    files.path.write_bytes(whole)
    assert running.current().users == before.users
    assert running.ok


def remove(path: Path) -> None:
    path.unlink()


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text("# nothing but a comment\n"),
        lambda path: path.write_text("---\n"),
        lambda path: path.write_text("null\n"),
        lambda path: path.write_text("{}\n"),
        lambda path: path.write_text("basic_auth_users: {}\n"),
        lambda path: path.write_text("basic_auth_users:\n"),
        lambda path: path.write_text("basic_auth_users: {prometheus: }\n"),
        lambda path: path.write_text("tls_server_config:\n"),
        lambda path: path.write_text("rate_limit: {interval: 1s, burst: 5}\n"),
        lambda path: path.write_bytes(bytes(100)),
        remove,
        make_directory,
    ],
)
def test_the_password_stays(
    files: Files, change: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Without the last user, or without a file, the old password is asked for, and the log says what to do."""
    path = files.write(users(prometheus=hashed()))

    async def scenario() -> None:
        running = WebConfig(path)
        async with serving(Numbers(), web_config=running) as endpoint:
            change(path)
            assert (await ask(endpoint)).status == 401
            assert (await ask(endpoint, headers=basic("prometheus", PASSWORD))).status == 200
            assert not running.ok

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.text.count("web configuration not reloaded, the old one stays in force") == 1


@pytest.mark.parametrize(
    ("lost", "option"),
    [
        ("client_auth_type", "tls_server_config.client_auth_type"),
        ("client_allowed_sans", "tls_server_config.client_allowed_sans"),
    ],
)
def test_client_certificates_stay(files: Files, lost: str, option: str) -> None:
    """A reload does not take away that clients need a certificate, or which ones."""
    running = WebConfig(files.write({"tls_server_config": TLS}))
    rest = {name: value for name, value in TLS.items() if name != lost}
    if lost == "client_auth_type":
        rest = {name: value for name, value in rest.items() if not name.startswith("client")}
    files.write({"tls_server_config": rest})
    assert running.current().protections == {"tls_server_config", *running.policy.protections}
    assert option in str(running.refusal)
    assert "restart" in str(running.refusal)


def test_the_last_of_several_users_can_be_removed(files: Files) -> None:
    """A user at the end of the file is removed by a reload, although the rest is the beginning of the old file."""
    text = text_of(("rate_limit", "basic_auth_users"))
    running = WebConfig(files.write(text))
    files.write(text[: text.index("  bob")])
    assert running.current().users.keys() == {b"alice"}
    assert running.ok


def test_a_restart_applies_what_a_reload_refuses(files: Files) -> None:
    """A new process takes the file as it is."""
    WebConfig(files.write(users(prometheus=hashed())))
    assert not WebConfig(files.write("")).current().users


def test_a_reload_that_would_open_the_server_fails(files: Files, tmp_path: Path) -> None:
    """With the users cut away, SIGHUP and POST /-/reload fail, the metric is 0, and all is well once they are back."""
    whole = yaml.safe_dump(users(prometheus=hashed()))
    files.write(whole)
    config = tmp_path / "exporter.yaml"
    config.write_text(f"web: {{config_file: {files.path}, enable_lifecycle: true}}\n")
    with Sidecar("--config", config) as sidecar:
        assert sidecar.get()[0] == 401
        files.write("")
        sidecar.send(signal.SIGHUP)
        sidecar.wait_for(
            "not reloaded, the old configuration stays: .*basic_auth_users: cannot be taken away.*restart"
        )
        assert sidecar.get()[0] == 401
        headers = basic("prometheus", PASSWORD)
        status, text = sidecar.get("/-/reload", method="POST", headers=headers)
        assert (status, "basic_auth_users: cannot be taken away" in text) == (500, True)
        success = "sqlalchemy_pool_exporter_config_last_reload_successful"
        assert f"\n{success} 0.0\n" in sidecar.get(headers=headers)[1]
        files.write(whole)
        assert f"\n{success} 0.0\n" in sidecar.get(headers=headers)[1]  # the last reload has failed
        sidecar.send(signal.SIGHUP)
        sidecar.wait_for(": configuration reloaded")
        assert f"\n{success} 1.0\n" in sidecar.get(headers=headers)[1]
        assert sidecar.end() == 0


def test_a_fault_is_a_configuration_error(files: Files) -> None:
    """The refusal is the error that a reload raises."""
    running = WebConfig(files.write(users(prometheus=hashed())))
    files.write("")
    running.current()
    assert isinstance(running.refusal, ConfigError)
