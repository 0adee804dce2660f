# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the sidecar's tests: a configuration file, and the variables that it names."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that the tests name as `dsn_env`."""
    for name in ("A", "ORDERS_DSN"):
        monkeypatch.setenv(name, "postgresql://db.example/orders")


@pytest.fixture
def given_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a configuration file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "exporter.yaml"
        path.write_text(textwrap.dedent(text), "utf-8")
        return path

    return write
