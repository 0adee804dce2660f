# SPDX-License-Identifier: Apache-2.0
"""The numbers of a file as arrays. One that no writer stores raises an error."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import sys
from array import array
from typing import Final

from sqlalchemy_pool_exporter.errors import SegmentError

from .page import COUNTS

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import array_of

# Valid highest bytes of a count. That byte has the sign and most of the exponent. With one of these values the count is
# finite, not negative, and below 2**49, which is more than any process ever counts.
_HIGHEST_BYTES: Final = bytes(range(0x43))
# The same for the state, whose times can be negative.
_HIGHEST_SIGNED: Final = _HIGHEST_BYTES + bytes(range(0x80, 0xC3))
MOST: Final = 2.0**49
NO_NUMBER: Final = "a count or a time that is no number"
_HIGHEST: Final = 7 if sys.byteorder == "little" else 0


def used(
    doubles: array[float], begin: cython.Py_ssize_t, end: cython.Py_ssize_t, least: cython.double
) -> cython.Py_ssize_t:
    """Return where the numbers in a part of a table end that are not 0; most rows of most tables are free.

    Raises:
        SegmentError: one is less than ``least``, too large, or no number.
    """
    if cython.compiled:
        numbers: cython.p_double = array_of(doubles)
        found: cython.Py_ssize_t = begin
        most: cython.double = 562949953421312.0  # MOST
        at: cython.Py_ssize_t
        number: cython.double
        for at in range(begin, end):
            number = numbers[at]
            if not least <= number < most:  # comparisons with NaN are false
                raise SegmentError(NO_NUMBER)
            if number != 0.0:
                found = at + 1
        return found
    data = doubles[begin:end].tobytes()
    if data[_HIGHEST::8].translate(None, _HIGHEST_BYTES if least == 0.0 else _HIGHEST_SIGNED):
        raise SegmentError(NO_NUMBER)
    return begin + (len(data.rstrip(b"\0")) + 7) // 8


def table(data: bytes, width: cython.Py_ssize_t) -> array[float]:
    """Return the rows of a table without the free ones at its end, which are most of the table."""
    rows = array("d", data)
    if not data:
        return rows
    end = -(-used(rows, 0, len(rows), -MOST) // width) * width
    return rows if end == len(rows) else rows[:end]


def counts(data: bytes, begin: int) -> array[float]:
    """Return the counts that begin at a byte."""
    found = array("d", data[begin : begin + 8 * COUNTS])
    used(found, 0, COUNTS, 0.0)
    return found
