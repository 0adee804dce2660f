# SPDX-License-Identifier: Apache-2.0
"""Exemplars: for each bucket of two histograms the trace of the last observation that had one.

They are in a page of their own, which a pool gets with its first one: a slot for each bucket. The writer copies the
bytes of a slot into the page, and a reader in another process can read in the middle of that. So a slot ends with a
digest of the rest, and a reader shows only what has the right one: neither a torn slot nor a damaged one is ever shown.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.metrics import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The histograms that have exemplars, by the key of the metric.
HISTOGRAMS: Final = ("checkout_wait_seconds", "hold_seconds")
WAITS, HOLDS = range(len(HISTOGRAMS))
_BUCKETS: Final = len(BUCKETS) + 1
_COUNT: Final = _BUCKETS * len(HISTOGRAMS)
_CONTENT: Final = struct.Struct("=16s8sdd")
_DIGEST_BYTES: Final = 8
_SLOT_BYTES: Final = _CONTENT.size + _DIGEST_BYTES
_FIRST_AT: Final = 32  # in the page, in bytes
_EMPTY: Final = bytes(_SLOT_BYTES)
_LATEST: Final = 2.0**40  # of a Unix time


class Exemplar(NamedTuple):
    """The trace of an observation."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    value: float  # seconds
    moment: float  # Unix time


# By bucket, of each of HISTOGRAMS in turn; empty if there is none at all.
Exemplars = tuple[Exemplar | None, ...]


def slot_at(histogram: int, value: float) -> slice:
    """Return where the slot of an observation is in the page; the first argument is ``WAITS`` or ``HOLDS``."""
    begin = _FIRST_AT + _SLOT_BYTES * (histogram * _BUCKETS + bisect_left(BUCKETS, value))
    return slice(begin, begin + _SLOT_BYTES)


def encoded(trace_id: int, span_id: int, value: float, moment: float) -> bytes:
    """Return the bytes of a slot.

    Args:
        trace_id: a number of 128 bits.
        span_id: a number of 64 bits.
        value: seconds.
        moment: Unix time.
    """
    content = _CONTENT.pack(trace_id.to_bytes(16, "big"), span_id.to_bytes(8, "big"), value, round(moment, 3))
    return content + _digest(content)


def decoded(page: bytes | memoryview) -> Exemplars:
    """Return the exemplars in a page."""
    found = tuple(
        _of_slot(bytes(page[at : at + _SLOT_BYTES]), number % _BUCKETS)
        for number, at in enumerate(range(_FIRST_AT, _FIRST_AT + _COUNT * _SLOT_BYTES, _SLOT_BYTES))
    )
    return found if any(found) else ()


def newest(rows: Iterable[Exemplars]) -> Exemplars:
    """Return of each bucket the newest exemplar of several pools."""
    return tuple(
        max(filter(None, column), key=lambda one: one.moment, default=None)
        for column in zip(*filter(None, rows), strict=True)
    )


def merged(exemplars: Exemplars, shown: Sequence[int]) -> Exemplars:
    """Return the exemplars of fewer buckets, each of which counts what those before it did.

    Args:
        exemplars: of one histogram.
        shown: positions of the buckets that are shown, in order; the last one is that of the bucket without a bound.
    """
    parts = (exemplars[begin:end] for begin, end in pairwise((0, *(at + 1 for at in shown))))
    return tuple(max(filter(None, part), key=lambda one: one.moment, default=None) for part in parts)


def by_histogram(exemplars: Exemplars) -> dict[str, Exemplars]:
    """Return the exemplars of each histogram by the key of its metric; nothing of a histogram without one."""
    parts = (exemplars[at : at + _BUCKETS] for at in range(0, len(exemplars), _BUCKETS))
    return {key: part for key, part in zip(HISTOGRAMS, parts, strict=False) if any(part)}


def _of_slot(slot: bytes, bucket: int) -> Exemplar | None:
    if slot == _EMPTY:
        return None
    content = slot[: _CONTENT.size]
    if slot[_CONTENT.size :] != _digest(content):
        return None
    trace_id, span_id, value, moment = _CONTENT.unpack(content)
    # OpenMetrics wants the value within the bucket. Comparisons with NaN are false.
    if not (0.0 <= value < _LATEST and bisect_left(BUCKETS, value) == bucket and 0.0 <= moment < _LATEST):
        return None
    return Exemplar(trace_id.hex(), span_id.hex(), value, moment)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES).digest()
