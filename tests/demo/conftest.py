# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the demo's tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.running_demo import working_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for temporary files, and nothing of a demo is left in it or runs in it afterwards.

    Not pytest's own: that is closed to other accounts, and as root the demo's PostgreSQL runs as another one.
    """
    with tempfile.TemporaryDirectory(prefix="test-demo-", ignore_cleanup_errors=True) as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path
        left = [*path.iterdir(), *working_in(path)]
        assert left == []
