# SPDX-License-Identifier: Apache-2.0
"""The exact sums of rows of counts, rounded once."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter import cython

if cython.compiled:  # never run; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = Sequence[float]


def total(rows: Sequence[Row]) -> list[float]:
    """Return the sum of each column of several rows, as ``math.fsum()`` rounds it."""
    if cython.compiled:
        return _total([row if isinstance(row, array) else array("d", row) for row in rows])
    # As lists: each number of an array is made anew when it is asked for, which takes three times as long.
    return list(map(math.fsum, zip(*map(_list, rows), strict=True)))


def _list(row: Row) -> Row:
    return row.tolist() if isinstance(row, array) else row


@cython.boundscheck(False)  # noqa: FBT003 - Cython's signature
@cython.wraparound(False)  # noqa: FBT003
@cython.locals(
    added="double[::1]",
    lost="double[::1]",
    doubles="double[::1]",
    width="Py_ssize_t",
    column="Py_ssize_t",
    one="double",
    other="double",
    both="double",
    part="double",
)
def _total(rows: list[array[float]]) -> list[float]:
    """Add up columns without objects. Nearly all counts are whole numbers, of which each sum is exact."""
    width = len(rows[0])
    added, lost = array("d", bytes(8 * width)), array("d", bytes(8 * width))
    for row in rows:
        if len(row) != width:
            raise ValueError("rows of different lengths")
        doubles = row
        for column in range(width):
            one, other = added[column], doubles[column]
            both = one + other
            # Knuth's error of a sum, which is exact: not 0 if the sum was rounded.
            part = both - one
            if (one - (both - part)) + (other - part) != 0.0:
                lost[column] = 1.0
            added[column] = both
    return [
        math.fsum([row[column] for row in rows]) if lost[column] else added[column] for column in range(width)
    ]
