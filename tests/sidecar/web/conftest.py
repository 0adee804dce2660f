# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the web server's tests: a certificate authority and a directory for configuration files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.web_files import Files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """Return an authority for server certificates."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, ca: trustme.CA) -> Files:
    """Return an empty directory for a configuration."""
    return Files(tmp_path, ca)
