# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of what is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.charts import example

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the chart's example that has its dependency."""
    return example(tmp_path_factory.mktemp("example"))
