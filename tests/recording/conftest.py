# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the recording."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def little_to_collect() -> Iterator[None]:
    # Thousands of collections are asked for below; what is there before need not be looked at in each.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
