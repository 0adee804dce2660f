# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of what is shipped: the chart's example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.charts import example

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example with its dependency in place."""
    return example(tmp_path_factory.mktemp("example"))
