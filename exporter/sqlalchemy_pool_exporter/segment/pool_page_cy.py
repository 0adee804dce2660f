# SPDX-License-Identifier: Apache-2.0
"""The page of a live pool, as a reader keeps it from read to read."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from . import identity
from .block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    FIELDS,
    FIRST_COUNTER,
    RECYCLE,
    ROW,
    ROWS,
    SITES_OFF,
    SIZE,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from .entries import with_sites
from .numbers_cy import MOST, NO_NUMBER
from .page import BIRTH, DOUBLES_AT, TEXT_AT
from .snapshot import Snapshot
from .worker import WorkerPool

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import has
    from cython.cimports.sqlalchemy_pool_exporter.segment.numbers_cy import table, used
else:
    from .numbers_cy import table, used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .entries import SiteCounts
    from .exemplars import Exemplars

_BIRTH: Final = struct.Struct("=Q")
_STATE_BYTES: Final = 8 * FIELDS
_WAITERS: Final = 8 * WAITERS_AT
_CONNECTIONS: Final = 8 * CONNECTIONS_AT
_ROW_BYTES: Final = 8 * ROW
# The constructor of a named tuple, without its function in Python, which takes four times as long.
_new: Final[Any] = tuple.__new__


class PoolPage:
    """The block of a pool: of the page, only what is in use is compared and kept.

    Mutable state: what the page said at the last read, and what was made of that.
    """

    __slots__ = (
        "_connections",
        "_described",
        "_exemplars",
        "_head",
        "_more",
        "_sites",
        "_snapshot",
        "_state",
        "_waiters",
        "_whole",
        "birth",
    )

    def __init__(self, data: bytes, begin: int) -> None:
        """Read the page that begins at a byte of a file.

        Raises:
            SegmentError: it is damaged.
        """
        self._head = data[begin : begin + DOUBLES_AT]
        self._described = identity.read(self._head[TEXT_AT:])
        self.birth: int = _BIRTH.unpack_from(self._head, 8 * BIRTH)[0]
        self._sites: Sequence[SiteCounts] | None = None
        self._more: Sequence[array[float]] = ()
        self._exemplars: Exemplars = ()
        self._decode(data, begin)

    def renew(self, data: bytes, begin: cython.Py_ssize_t) -> cython.bint:
        """Read what has changed since the last read. Return whether it is the page of the same pool.

        Raises:
            SegmentError: it is damaged.
        """
        block: cython.Py_ssize_t = begin + DOUBLES_AT
        if cython.compiled:
            if not has(data, begin, self._head):
                return False
            is_same: cython.bint = (
                has(data, block, self._state)
                and has(data, block + _CONNECTIONS, self._connections)
                and has(data, block + _WAITERS, self._waiters)
            )
        else:
            if not data.startswith(self._head, begin):
                return False
            is_same = (
                data.startswith(self._state, block)
                and data.startswith(self._connections, block + _CONNECTIONS)
                and data.startswith(self._waiters, block + _WAITERS)
            )
        if not is_same:
            self._decode(data, begin)
        return True

    def _decode(self, data: bytes, begin: cython.Py_ssize_t) -> None:
        at: cython.Py_ssize_t
        block: cython.Py_ssize_t = begin + DOUBLES_AT
        said = data[block : block + _STATE_BYTES]
        state = array("d", said)
        waiters: cython.double = state[WAITERS_USED]
        connections: cython.double = state[CONNECTIONS_USED]
        # Comparisons with NaN are false.
        if not (0.0 <= waiters <= WAITERS and 0.0 <= connections <= ROWS):
            raise SegmentError("tables of an impossible length")
        at = block + _WAITERS
        some_waiters = data[at : at + 8 * int(waiters)]
        at = block + _CONNECTIONS
        some_connections = data[at : at + _ROW_BYTES * int(connections)]
        # Only a limit that does not apply is NaN.
        used(state, 0, SIZE, -MOST)
        for at in range(SIZE, RECYCLE + 1):
            if abs(state[at]) >= MOST:
                raise SegmentError(NO_NUMBER)
        used(state, RECYCLE + 1, FIRST_COUNTER, -MOST)
        used(state, FIRST_COUNTER, FIELDS, 0.0)
        # Arrays make no float objects until a number is asked for. Those were most of what a scrape allocated.
        counts = state[FIRST_COUNTER:]
        if state[SITES_OFF]:
            counts = with_sites(counts, are_off=True)
        self._snapshot: Snapshot = _new(
            Snapshot,
            (state[:FIRST_COUNTER], table(some_waiters, 1), table(some_connections, ROW), counts, (), ()),
        )
        self._state, self._waiters, self._connections = said, some_waiters, some_connections
        self._whole: WorkerPool | None = None

    def whole(
        self, sites: Sequence[SiteCounts] | None, more: Sequence[array[float]], exemplars: Exemplars
    ) -> WorkerPool:
        """Return the pool with its sites and further rows.

        Args:
            sites: None if it has none; the same object as before if they are the same.
            more: rows of further pages, likewise.
            exemplars: likewise.
        """
        if (
            self._whole is None
            or self._sites is not sites
            or self._more is not more
            or self._exemplars is not exemplars
        ):
            snapshot = self._snapshot
            if sites is not None:
                snapshot = snapshot._replace(sites=sites)
            if more:
                rows = array("d", snapshot.connections)
                for page in more:
                    rows.extend(page)
                snapshot = snapshot._replace(connections=rows)
            if exemplars:
                snapshot = snapshot._replace(exemplars=exemplars)
            described = self._described
            self._whole = _new(WorkerPool, (described.identity, described.info, snapshot, None, False, 0))
            self._sites, self._more, self._exemplars = sites, more, exemplars
        return self._whole
