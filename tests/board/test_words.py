# SPDX-License-Identifier: Apache-2.0
"""Durations, rates and numbers as people read them."""

from __future__ import annotations

import pytest

from sqlalchemy_pool_exporter.board.words import counted, duration, rate


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 s"),
        (0.0004, "0 s"),
        (0.015, "15 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (310.0, "5 min 10 s"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
        (200_000.0, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    """A duration has two or three digits, and two units from a minute on."""
    assert expected == duration(seconds)


def test_numbers() -> None:
    """A noun agrees with its number, and a rate has three digits."""
    assert ("1 caller", "2 callers", "12,345 boxes") == (
        counted(1, "caller"),
        counted(2, "caller"),
        counted(12_345, "box", "boxes"),
    )
    assert ("0/s", "0.333/s", "12/s", "12,346/s") == (rate(0), rate(1 / 3), rate(12), rate(12_345.6))
