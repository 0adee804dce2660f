# SPDX-License-Identifier: Apache-2.0
"""Options from the environment and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.sidecar.config import load
from sqlalchemy_pool_exporter.sidecar.sources import Override, find_overrides
from tests.support.config_files import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line overrides the environment, an empty variable counts as unset, and the origin is kept."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS", ":1")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL", "debug")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_DIR", "")
    assert find_overrides({"web.listen_address": ":2", "web.config_file": None}) == {
        ("web", "listen_address"): Override(":2", "command line"),
        ("log", "level"): Override("debug", "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL"),
    }


def test_precedence(given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For each option the command line overrides the environment, which overrides the file, then comes the default."""
    path = given_file(
        """
        web: {listen_address: "127.0.0.1:1", telemetry_path: /file}
        log: {level: error, format: json}
        """
    )
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL", "warning")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_DIR", "")
    config = load(path, {"web.listen_address": "[::1]:3", "log.level": None, "web.enable_lifecycle": "true"})
    assert config.web.listen_address == Address("::1", 3)
    assert config.web.telemetry_path == "/file"
    assert config.web.enable_lifecycle is True
    assert config.log.level == "warning"
    assert config.log.format == "json"
    assert config.segments.directory is None


def test_the_environment_names_the_file(
    given_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment can name the file; a path that is passed to `load()` takes precedence."""
    path = given_file("log: {level: error}")
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_CONFIG", str(path))
    assert load().log.level == "error"
    assert load(SHIPPED).log.level == "info"
