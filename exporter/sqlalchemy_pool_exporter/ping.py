# SPDX-License-Identifier: Apache-2.0
"""Pre-pings, which no event and no method of the pool shows: they are seen by the dialect's method."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .place import Place
    from .recorder import Recorder


class PingTap:
    """Stands in for a dialect's ping, and times it for whichever pool's connection is pinged.

    Pools can share a dialect, as those before and after ``dispose()`` do, so there is one for each dialect.
    """

    # From 2.0.5 on it is this one that decides whether an error means that the connection is dead.
    _METHODS = ("_do_ping_w_event", "do_ping")

    def __init__(self, dialect: Any, name: str) -> None:
        self._name = name
        self._original = getattr(dialect, name)
        self._was_set = name in dialect.__dict__
        self._recorders: list[weakref.ref[Recorder]] = []
        functools.update_wrapper(self, self._original)

    def __call__(self, dbapi_connection: Any) -> Any:
        """Ping, and record it."""
        recorder, place = self._find(dbapi_connection)
        if recorder is None or place is None:
            return self._original(dbapi_connection)
        began, alive = 0.0, None
        try:
            began = recorder.clock()
        except Exception as error:  # noqa: BLE001 - recording never raises
            recorder.fault(error)
        try:
            answer = self._original(dbapi_connection)
            alive = bool(answer)
        finally:
            try:
                recorder.pinged(place, began, alive=alive)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
        return answer

    def _find(self, connection: object) -> tuple[Recorder | None, Place | None]:
        for reference in self._recorders:
            recorder = reference()
            if recorder is None:
                continue
            try:
                place = recorder.place_of_connection(connection)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
                continue
            if place is not None:
                return recorder, place
        return None, None

    @classmethod
    def attach(cls, dialect: Any, recorder: Recorder) -> None:
        """Time the pings of the pool that ``recorder`` records, among others' of the dialect."""
        name = next(name for name in cls._METHODS if hasattr(dialect, name))
        tap = dialect.__dict__.get(name)
        if not isinstance(tap, cls):
            tap = cls(dialect, name)
            setattr(dialect, name, tap)
        others = [other for other in tap._recorders if other() not in {None, recorder}]
        tap._recorders = [*others, weakref.ref(recorder)]

    @classmethod
    def detach(cls, dialect: Any, recorder: Recorder) -> None:
        """Stop it; the last one restores the dialect."""
        for name in cls._METHODS:
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
