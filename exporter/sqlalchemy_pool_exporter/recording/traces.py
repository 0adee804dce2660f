# SPDX-License-Identifier: Apache-2.0
"""Ties slow checkouts and long holds to the traces of OpenTelemetry: an event of the current span, and exemplars.

All of it runs only after a wait or a hold of ``trace_after``; the hot path compares a number. Nothing here imports
OpenTelemetry: an application that uses it has imported it, and without that there is no current span.
"""

from __future__ import annotations

import inspect
import opcode
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.conventions import POOL_NAME
from sqlalchemy_pool_exporter.segment.block import FAULTS
from sqlalchemy_pool_exporter.segment.exemplars import HOLDS, WAITS, encoded, slot_at
from sqlalchemy_pool_exporter.segment.own_errors import handles_a_signal

from .connection_row_cy import Phases, TracedCheckout
from .frames import site_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection_row_cy import ConnectionRow
    from .recorder import Recorder

EVENT: Final = "sqlalchemy_pool.wait"
# Where nothing says how long a phase took, and it took less than this, it is not told.
_SHORT_SECONDS: Final = 0.0005
_LABEL_SECONDS: Final = 10.0
_API: Final = "opentelemetry.trace"
_SAMPLED: Final = 1
_RAISE: Final = opcode.opmap["RAISE_VARARGS"]


class _Trace(NamedTuple):
    """The trace of a sampled span."""

    trace_id: int
    span_id: int


class Traces:
    """Knows the traces of one pool's checkouts. Mutable state: the label of the pool, and when it was asked for."""

    __slots__ = ("_asked", "_label", "recorder")

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._label, self._asked = "", 0.0

    def waited(self, row: ConnectionRow, began: float, now: float) -> None:
        """Tell the current span of a checkout, and give its wait an exemplar.

        Args:
            row: of the connection.
            began: when the checkout began.
            now: when it was recorded.
        """
        trace = self._tell(now - began, lambda: _phases(row, began, now))
        if trace is not None:
            Phases.of(row).trace = TracedCheckout(row.held_since, *trace)
        self._store(WAITS, trace, now - began)

    def wait_failed(self, wait: float, error: BaseException) -> None:
        """Likewise for a checkout that raised."""
        kind = type(error)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        self._store(WAITS, self._tell(wait, lambda: {"error.type": name}), wait)

    def held(self, row: ConnectionRow, since: float, held: float, *, collected: bool) -> None:
        """Give a hold an exemplar.

        Args:
            row: of the connection.
            since: when it was checked out.
            held: for how long, in seconds.
            collected: the garbage collector returned it, so the current span has nothing to do with it.
        """
        trace: _Trace | None = None
        known: TracedCheckout | None = None if row.phases is None else row.phases.trace
        if known is not None and known.since == since:
            trace = _Trace(known.trace_id, known.span_id)
        elif not collected:
            trace = self._asking(lambda: _sampled(_current_span()))
        self._store(HOLDS, trace, held)

    # -- the span

    def _tell(self, wait: float, more: Callable[[], dict[str, Any]]) -> _Trace | None:
        """Add an event to the current span, if it records; return its trace, if it is sampled."""
        span: Any = self._asking(_current_span)
        if span is None:
            return None
        if self._asking(span.is_recording):
            attributes = {POOL_NAME: self._name(), f"{EVENT}.seconds": wait, **more(), **self._site()}
            self._asking(lambda: span.add_event(EVENT, attributes))
        trace: _Trace | None = self._asking(lambda: _sampled(span))
        return trace

    def _asking(self, ask: Callable[[], Any]) -> Any:
        """Call code of OpenTelemetry or of the application's tracer; None if that raises, which is a fault."""
        try:
            return ask()
        except Exception as error:
            if not _is_of_tracer(error):
                raise
            if not self.recorder.stopped:
                self.recorder.block[FAULTS] += 1.0
            return None

    def _name(self) -> str:
        """Return the label of the pool. To find it takes time where there are many pools."""
        now = time.monotonic()
        if not self._label or now - self._asked > _LABEL_SECONDS:
            self._label, self._asked = self.recorder.name(), now
        return self._label

    def _site(self) -> dict[str, Any]:
        origins = self.recorder.origins
        site = "" if origins is None else site_text(inspect.currentframe(), origins.prefixes)
        if not site:
            return {}
        module, function, line = site.rsplit(":", 2)
        return {
            "sqlalchemy_pool.site": site,
            "code.function.name": f"{module}.{function}",
            "code.line.number": int(line),
        }

    # -- exemplars

    def _store(self, histogram: int, trace: _Trace | None, value: float) -> None:
        recorder = self.recorder
        storage = recorder.storage
        if trace is None or recorder.stopped:
            return
        page = storage.room_for_exemplars()
        if page is None:
            return
        slot, data = slot_at(histogram, value), encoded(*trace, value, time.time())
        # straight line: once the recorder is stopped, another pool may have the page; after a fork it is the parent's
        if recorder.block and recorder.storage is storage:
            page[slot] = data
        # end of straight line


def _current_span() -> Any:
    """Return the current span of the caller; None if the application does not use OpenTelemetry, or has no span."""
    ask = getattr(sys.modules.get(_API), "get_current_span", None)
    span: Any = None if ask is None else ask()
    return span if span is not None and span.get_span_context().is_valid else None


def _sampled(span: Any) -> _Trace | None:
    """Return the trace of a span, if that is sampled: of others nobody will find anything."""
    if span is None:
        return None
    context = span.get_span_context()
    return _Trace(context.trace_id, context.span_id) if context.trace_flags & _SAMPLED else None


def _phases(row: ConnectionRow, began: float, now: float) -> dict[str, float]:
    """Return how long each phase of a checkout took: the queue, the ping, the connect, and all else."""
    starts, phases = [now], {}
    known: Phases | None = row.phases
    if known is not None and known.ping_began >= began:
        starts.append(known.ping_began)
        phases["ping_seconds"] = known.pinging
    if known is not None and row.connected_at - known.opening >= began:
        starts.append(row.connected_at - known.opening)
        phases["connect_seconds"] = known.opening
    phases["queue_seconds"] = max(0.0, min(starts) - began)
    other = now - began - sum(phases.values())
    if other >= _SHORT_SECONDS:
        phases["other_seconds"] = other
    return {f"{EVENT}.{phase}": seconds for phase, seconds in phases.items()}


def _is_of_tracer(error: Exception) -> bool:
    """Return whether the code that was called raised an error; if not, it is a time limit of the application.

    See ``is_own()``. A tracer can raise any class. What ``PyThreadState_SetAsyncExc()`` raises has no arguments, and no
    statement raised it.
    """
    if handles_a_signal(error):
        return False
    if error.args:
        return True
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and step.tb_frame.f_code.co_code[step.tb_lasti] == _RAISE
