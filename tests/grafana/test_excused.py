# SPDX-License-Identifier: Apache-2.0
"""A fault can be excused, and an excuse without a fault is one itself."""

from __future__ import annotations

import pytest

from tools.grafana.excused import EXCUSES, Excuse, remaining
from tools.grafana.page import Fault

pytestmark = pytest.mark.newest
FAULT = Fault("overview", "Pools", "one colour", "it never changes")


def test_excused() -> None:
    """An excuse for the panel or for all panels covers a fault of its kind."""
    assert [] == remaining([FAULT], [Excuse("overview", "one colour", ("Pools",), "why")])
    assert [] == remaining([FAULT], [Excuse("overview", "one colour", (), "why")])


@pytest.mark.parametrize(
    "other",
    [
        Excuse("pool", "one colour", ("Pools",), "why"),
        Excuse("overview", "too wide", ("Pools",), "why"),
        Excuse("overview", "one colour", ("Processes",), "why"),
    ],
)
def test_unneeded(other: Excuse) -> None:
    """A fault that no excuse covers is left, and so is an excuse that covers none."""
    fault, unneeded = remaining([FAULT], [other])
    assert str(FAULT) == fault
    assert unneeded.endswith("needs no excuse any more")
    assert 1 == len(remaining([], [Excuse("overview", "one colour", (), "why")]))


def test_reasons() -> None:
    """Every excuse has a reason."""
    assert all(excuse.reason for excuse in EXCUSES)
