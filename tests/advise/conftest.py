# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of ``advise``: short replays, which take a tenth of the time."""

from __future__ import annotations

import pytest

from sqlalchemy_pool_exporter.advise import replay


@pytest.fixture(autouse=True)
def short_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay fewer callers; tests that compare with formulas say how many they need."""
    monkeypatch.setattr(replay, "CALLERS", 6_000)
