# SPDX-License-Identifier: Apache-2.0
"""The sidecar's shipped configuration file, and helpers for the files that tests write."""

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
SECRET = "hunter2-correct-horse"  # noqa: S105 - must not be in any output
DATABASE = "databases: [{name: a, dsn_env: A, %s}]"


def faults(path: Path | None, overrides: Mapping[str, str] | None = None) -> list[str]:
    """Return the faults, one per line, of the error for ``path``."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [line.strip() for line in str(caught.value).splitlines()][1:]


def all_options() -> list[generate_configuration.Option]:
    """Return every option, with its texts in the reference."""
    return list(generate_configuration.options_of(Config))
