# SPDX-License-Identifier: Apache-2.0
"""Configuration files of the sidecar: the one we ship, and what the tests look for in those that they write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Config, load
from tests.support.paths import ROOT
from tools import generate_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHIPPED = ROOT / "config" / "exporter.yaml"
SECRET = "hunter2-correct-horse"  # noqa: S105 - what must not be seen
DATABASE = "databases: [{name: a, dsn_env: A, %s}]"


def faults(path: Path | None, overrides: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of the error that ``path`` is."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [line.strip() for line in str(caught.value).splitlines()][1:]


def all_options() -> list[generate_configuration.Option]:
    """Return every option there is, with what the reference says of it."""
    return list(generate_configuration.options_of(Config))
