# SPDX-License-Identifier: Apache-2.0
"""Pre-pings, which no event and no method of the pool shows: the dialect's method is wrapped."""

from __future__ import annotations

import functools
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment.block import PING, SUM

from .sqlalchemy_pool import PING_METHODS

if TYPE_CHECKING:
    from .connection_row import ConnectionRow
    from .recorder import Recorder

_FIRST_BUCKET: Final = BUCKETS[0]
_PING_SUM: Final = PING + SUM


class PingTap:
    """Stands in for a dialect's ping, and times it for the pool whose connection is pinged.

    Pools can share a dialect, as those before and after ``dispose()`` do, so there is one for each dialect.
    """

    def __init__(self, dialect: Any, name: str) -> None:
        self._name = name
        self._original = getattr(dialect, name)
        self._was_set = name in dialect.__dict__
        self._recorders: list[weakref.ref[Recorder]] = []
        functools.update_wrapper(self, self._original)

    def __call__(self, dbapi_connection: Any) -> Any:
        """Ping, and record it; written out, since a checkout with pre-ping runs through it."""
        recorder: Recorder | None = None
        found, began = None, 0.0
        try:
            for reference in self._recorders:
                recorder = reference()
                row = None if recorder is None else recorder.connections.by_id.get(id(dbapi_connection))
                record = row and row()
                # An id can be reused; only the record says whose connection it is.
                if recorder and record and record.dbapi_connection is dbapi_connection:
                    found = row
                    began = recorder.clock()
                    break
        except Exception as error:  # noqa: BLE001 - recording never raises
            if recorder is not None:
                recorder.fault(error)
        if recorder is None or found is None:
            return self._original(dbapi_connection)
        try:
            answer = self._original(dbapi_connection)
        except BaseException:
            _pinged(recorder, found, began, alive=None)
            raise
        if not answer or not began:
            _pinged(recorder, found, began, alive=bool(answer))
            return answer
        try:
            elapsed = recorder.clock() - began
            bucket = PING if elapsed <= _FIRST_BUCKET else PING + bisect_left(BUCKETS, elapsed)
            block = recorder.block
            # straight line
            block[bucket] += 1.0
            block[_PING_SUM] += elapsed
            # end of straight line
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)
        return answer

    @classmethod
    def attach(cls, dialect: Any, recorder: Recorder) -> None:
        """Time the pings of the pool that ``recorder`` records, among others' of the dialect."""
        name = next(name for name in PING_METHODS if hasattr(dialect, name))
        tap = dialect.__dict__.get(name)
        if not isinstance(tap, cls):
            tap = cls(dialect, name)
            setattr(dialect, name, tap)
        others = [other for other in tap._recorders if other() not in {None, recorder}]
        tap._recorders = [*others, weakref.ref(recorder)]

    @classmethod
    def detach(cls, dialect: Any, recorder: Recorder) -> None:
        """Stop it; the last one restores the dialect."""
        for name in PING_METHODS:
            tap = getattr(dialect, "__dict__", {}).get(name)
            if not isinstance(tap, cls):
                continue
            tap._recorders = [other for other in tap._recorders if other() not in {None, recorder}]
            if tap._recorders:
                continue
            if tap._was_set:
                setattr(dialect, name, tap._original)
            else:
                delattr(dialect, name)


def _pinged(recorder: Recorder, row: ConnectionRow, began: float, *, alive: bool | None) -> None:
    try:
        recorder.pinged(row, began, alive=alive)
    except Exception as error:  # noqa: BLE001 - recording never raises
        recorder.fault(error)
