# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of the demo."""

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
    """A directory for temporary files; after the test, the demo must have left no file in it and no process.

    Not pytest's tmp_path, which other accounts cannot enter: as root, the demo runs PostgreSQL as another account.
    """
    with tempfile.TemporaryDirectory(prefix="test-demo-", ignore_cleanup_errors=True) as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path
        left = [*path.iterdir(), *working_in(path)]
        assert left == []
