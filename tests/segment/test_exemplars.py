# SPDX-License-Identifier: Apache-2.0
"""Exemplars in a page: what a writer stored is read back, and a torn or damaged slot is never shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment.block import PAGE_BYTES
from sqlalchemy_pool_exporter.segment.exemplars import (
    HISTOGRAMS,
    HOLDS,
    WAITS,
    Exemplar,
    by_histogram,
    decoded,
    encoded,
    merged,
    newest,
    slot_at,
)

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.segment.exemplars import Exemplars

BOUNDS = len(BUCKETS) + 1
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def page_with(*observations: tuple[int, float], moment: float = 1700000000.0) -> bytearray:
    """Return a page with the exemplars of these observations, each of a histogram and a value."""
    page = bytearray(PAGE_BYTES)
    for histogram, value in observations:
        page[slot_at(histogram, value)] = encoded(TRACE, SPAN, value, moment)
    return page


def test_each_bucket() -> None:
    """Each bucket of both histograms has a slot, a bound belongs to the bucket below it, and all fit into a page."""
    values = [*BUCKETS, 1e6]
    every = [(histogram, value) for histogram in (WAITS, HOLDS) for value in values]
    found = by_histogram(decoded(bytes(page_with(*every))))
    expected = [Exemplar(f"{TRACE:032x}", f"{SPAN:016x}", value, 1700000000.0) for value in values]
    assert found == {key: tuple(expected) for key in HISTOGRAMS}


def test_none() -> None:
    """A page without exemplars has none at all."""
    assert decoded(bytes(PAGE_BYTES)) == ()
    assert by_histogram(()) == {}
    assert newest([(), ()]) == ()


def test_torn() -> None:
    """A slot that was half written over is not shown, wherever the halves meet."""
    before = page_with((WAITS, 0.2))
    after = bytearray(PAGE_BYTES)
    slot = slot_at(WAITS, 0.2)
    after[slot] = encoded(TRACE ^ (1 << 128) - 1, SPAN + 1, 0.21, 1700000001.0)
    assert any(decoded(bytes(before)))
    for at in range(slot.start + 1, slot.stop):
        torn = bytes(after[:at] + before[at:])
        if torn[slot] not in (bytes(before[slot]), bytes(after[slot])):
            assert decoded(torn) == ()


@pytest.mark.parametrize(
    ("value", "moment"),
    [(math.nan, 1.0), (math.inf, 1.0), (-1.0, 1.0), (0.2, math.nan), (0.2, -1.0), (0.2, 1e300), (7.0, 1.0)],
)
def test_impossible(value: float, moment: float) -> None:
    """What a writer of another mind stored is not shown: no number, or one of another bucket."""
    page = bytearray(PAGE_BYTES)
    page[slot_at(WAITS, 0.2)] = encoded(TRACE, SPAN, value, moment)
    assert decoded(bytes(page)) == ()


def test_newest() -> None:
    """Of several pools the newest exemplar of each bucket counts."""
    old = decoded(bytes(page_with((WAITS, 0.2), (HOLDS, 3.0), moment=1.0)))
    new = decoded(bytes(page_with((WAITS, 0.21), moment=2.0)))
    both: Exemplars = newest([old, (), new])
    assert [one.value for one in both if one] == [0.21, 3.0]
    assert newest([new, old]) == both


def test_fewer_buckets() -> None:
    """Where fewer buckets are shown, each has the newest exemplar of those that it stands for."""
    page = page_with((WAITS, 0.0004), (WAITS, 0.2), moment=1.0)
    page[slot_at(WAITS, 0.09)] = encoded(TRACE, SPAN, 0.09, 2.0)
    (some,) = by_histogram(decoded(bytes(page))).values()
    shown = [BUCKETS.index(0.1), BUCKETS.index(1.0), len(BUCKETS)]
    assert [one and one.value for one in merged(some, shown)] == [0.09, 0.2, None]
