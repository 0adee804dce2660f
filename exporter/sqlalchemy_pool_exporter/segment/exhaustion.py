# SPDX-License-Identifier: Apache-2.0
"""Why a pool is exhausted: the cause that its state makes likely, when a caller waited in vain."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Final, NamedTuple

from .block import (
    EMPTY,
    FIRST_COUNTER,
    HOLD,
    LAST_CHECKIN,
    LEAK_AFTER,
    OTHER_SITES,
    RECYCLE,
    ROW,
    SUM,
    TIMEOUT,
    UNTRACKED_CONNECTIONS,
    UNTRACKED_PENDING,
)
from .entries import HELD_SECONDS, HOLDS, OTHER
from .event_loop import lag, lag_now, peak_since
from .held import held, is_lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .held import Held
    from .snapshot import Snapshot

# Held so many times longer than usual: probably never returned.
_LEAK_FACTOR: Final = 10.0
# And so many times longer than the caller waited: what holds it up has been held for about as long.
_WAIT_FACTOR: Final = 2.0
# Connections that leak do so one after the other; those that are stuck have stuck at the same moment.
_LEAK_SPREAD: Final = 3.0
_USED: Final = frozenset(("database", "queue"))  # what a holder does that works with its connection
_MOST_SILENT: Final = 0.8  # of the wait: if nothing came back for longer, nothing does
_SLOW_FACTOR: Final = 3.0
_MOST: Final = 0.8  # of the connections whose site is known: one site has most of them
_LEAST: Final = 0.5  # of the connections, if the sites of others are not known
_BLOCKED_SECONDS: Final = 0.5  # a loop that is late by less is only busy
_ENOUGH_HOLDS: Final = 10  # for what is usual
_ENOUGH_OUT: Final = 3  # to say that one site has most of them


CAUSES: Final = (
    "loop_blocked",
    "self_deadlock",
    "nested_checkouts",
    "connecting",
    "leak",
    "stuck",
    "one_site",
    "slow",
    "busy",
    "unknown",
)


class Cause(NamedTuple):
    """Why a pool is exhausted.

    ``kind`` is one of ``CAUSES``; ``advice`` says what to look for, if that is not known.
    """

    kind: str
    words: str
    advice: str = ""


def likely_cause(
    snapshot: Snapshot,
    *,
    now: float,
    since: float,
    leak_after: float = math.inf,
    oldest_does: str = "",
) -> Cause:
    """Return the cause that is likely.

    Args:
        snapshot: of the pool.
        now: seconds of ``time.monotonic()``.
        since: when the caller that timed out began to wait.
        leak_after: seconds; connections that are held for longer are suspected of a leak, if the application says so.
        oldest_does: what the holder of the oldest connection does, if that is known: ``"database"`` or ``"queue"``, so
            that it is not forgotten, or ``"ended"``, so that it is.
    """
    out = list(held(snapshot))
    if blocked := _loop_blocked(snapshot, now, since):
        return blocked
    if not out:
        return _connecting(snapshot, 0) or Cause("unknown", "no connection is held now")
    if oldest_does == "queue" and is_lost(snapshot, min(out, key=lambda one: one.since)):
        oldest_does = ""
    return (
        _connecting(snapshot, len(out))
        or _waiting_for_itself(snapshot, out, now, since)
        or (None if oldest_does in _USED else _leak(snapshot, out, now, since, leak_after))
        or (_forgotten(out) if oldest_does == "ended" else None)
        or _stuck(snapshot, out, now, since)
        or _one_site(snapshot, out)
        or _slow_or_busy(snapshot, out, now)
    )


def _loop_blocked(snapshot: Snapshot, now: float, since: float) -> Cause | None:
    """Return the cause if the event loop ran nothing for at least half of the wait."""
    seconds = max(peak_since(snapshot, since), lag_now((snapshot,), now))
    if (lag((snapshot,), now) or 0.0) >= _BLOCKED_SECONDS:
        # The largest lag hides others, and several blocks may add up to the wait. A caller waits for longer than the
        # timeout only if the loop did not run when that ended. NaN if there is no timeout.
        seconds = max(seconds, now - since - snapshot.fields[TIMEOUT])
    if seconds < max(_BLOCKED_SECONDS, (now - since) / 2):
        return None
    return Cause(
        "loop_blocked",
        f"the event loop was blocked for {seconds:.3g} s, so no task could return a connection: look for calls that "
        "block, such as time.sleep(), synchronous clients and long computations",
    )


def _connecting(snapshot: Snapshot, out: int) -> Cause | None:
    """Return the cause if at least half of the pool is not checked out: then its places are taken by connects."""
    missing = snapshot.capacity - out - snapshot.fields[UNTRACKED_CONNECTIONS]
    if not missing >= max(1.0, snapshot.capacity / 2):  # NaN: no limit
        return None
    closed = sum(one == EMPTY for one in snapshot.connections[::ROW])
    recycle = snapshot.fields[RECYCLE]
    limit = f", if older than pool_recycle={recycle:g} s" if math.isfinite(recycle) else ""
    anew = f", {closed} of them in place of closed ones{limit}" if closed else ""
    return Cause(
        "connecting",
        f"{missing:.0f} of {snapshot.capacity:.0f} places are taken by connections that are being opened{anew}: the "
        "server is slow to accept them",
    )


def _waiting_for_itself(snapshot: Snapshot, out: Sequence[Held], now: float, since: float) -> Cause | None:
    # The caller's wait has timed out, and so may those of others that began to wait at the same time.
    recent = since - (now - since) / 2
    waiting = sum(
        (one.waits_since > 0.0 or one.gave_up_since > recent) and not is_lost(snapshot, one) for one in out
    )
    if waiting == len(out) >= snapshot.capacity:
        return Cause(
            "self_deadlock",
            "every holder waits for another connection of this pool, so none can go on: check out one connection at a "
            "time in each thread or task, or pass the one that is held",
        )
    if 2 * waiting >= len(out):
        return Cause(
            "nested_checkouts",
            f"{waiting} of {len(out)} connections are held by callers that wait for another one of this pool",
        )
    return None


def _leak(
    snapshot: Snapshot, out: Sequence[Held], now: float, since: float, leak_after: float
) -> Cause | None:
    """Return the cause if at least half of the connections are held for far longer than is usual."""
    usual = _Usual(snapshot)
    leak_after = min(leak_after, snapshot.fields[LEAK_AFTER] or math.inf)
    ages = [now - one.since for one in out]
    usual_ages = [_LEAK_FACTOR * usual.of(one.site) for one in out]
    wait = now - since
    suspects = [
        one
        for one, age, long in zip(out, ages, usual_ages, strict=True)
        if age > min(leak_after, max(_WAIT_FACTOR * wait, long))
    ]
    if 2 * len(suspects) < len(out):
        return None
    are_all_long = all(
        age > min(leak_after, max(wait, long)) for age, long in zip(ages, usual_ages, strict=True)
    )
    # All of them: then they only take long if some come back, or if they have begun at one moment.
    if (
        are_all_long
        and len(out) > 1
        and min(ages) <= leak_after
        and (_returns(snapshot, now, since) or max(ages) < _LEAK_SPREAD * min(ages))
    ):
        return None
    return Cause(
        "leak",
        f"{len(suspects)} of {len(out)} connections are held for far longer than is usual and may never come back"
        f"{_from(suspects)}",
    )


def _forgotten(out: Sequence[Held]) -> Cause:
    return Cause(
        "leak",
        f"the oldest of {len(out)} connections may never come back: what checked it out has ended{_from(out)}",
    )


def _returns(snapshot: Snapshot, now: float, since: float) -> bool:
    """Return whether connections came back while the caller waited, and not only when it began to."""
    return now - snapshot.fields[LAST_CHECKIN] < _MOST_SILENT * (now - since)


def _stuck(snapshot: Snapshot, out: Sequence[Held], now: float, since: float) -> Cause | None:
    if _returns(snapshot, now, since):
        return None
    silence = now - max(snapshot.fields[LAST_CHECKIN], since)
    return Cause(
        "stuck",
        f"no connection came back in {silence:.3g} s: what the holders do takes longer than that{_from(out)}",
        "Look for slow or blocked statements, and for calls to other services while a connection is held",
    )


def _one_site(snapshot: Snapshot, out: Sequence[Held]) -> Cause | None:
    # Of the connections that were checked out first, when the pool was not full, the sites may not be known.
    known = [one.site for one in out if one.site != OTHER]
    ((site, number),) = Counter(known).most_common(1) or [("", 0)]
    if number < max(_ENOUGH_OUT, _MOST * len(known), _LEAST * len(out)):
        return None
    # A site that has most of them at all times is not the reason for what is different now.
    usual = {one.text: one.counts[HELD_SECONDS] for one in snapshot.sites}
    usual[OTHER] = snapshot.counts[OTHER_SITES + HELD_SECONDS - FIRST_COUNTER]
    if usual.get(site, 0.0) > _MOST * sum(usual.values()):
        return None
    return Cause("one_site", f"{site} has {number} of {len(out)} connections")


def _slow_or_busy(snapshot: Snapshot, out: Sequence[Held], now: float) -> Cause:
    usual = _Usual(snapshot)
    average, expected = fmean(now - one.since for one in out), fmean(usual.of(one.site) for one in out)
    if average > _SLOW_FACTOR * expected:
        return Cause(
            "slow",
            f"connections come back, but are held for {average:.3g} s on average, and {expected:.3g} s are usual"
            f"{_from(out)}",
        )
    after = f", after {expected:.3g} s," if math.isfinite(expected) else ""
    sites = {one.site for one in out}
    places = "" if OTHER in sites else f" (from {len(sites)} places)"
    callers = len(out) + sum(map(bool, snapshot.waiters)) + snapshot.fields[UNTRACKED_PENDING]
    return Cause(
        "busy",
        f"connections come back as usual{after} and are taken at once{_from(out) or places}: there "
        f"is more work than connections, {callers:.0f} callers for {len(out)}",
    )


class _Usual:
    """How long connections are held as a rule, in seconds."""

    def __init__(self, snapshot: Snapshot) -> None:
        hold = snapshot.counts[HOLD - FIRST_COUNTER : HOLD + SUM - FIRST_COUNTER + 1]
        number = sum(hold[:-1])
        self._of_pool = hold[-1] / number if number >= _ENOUGH_HOLDS else math.inf
        self._of_site = {
            site.text: site.counts[HELD_SECONDS] / site.counts[HOLDS]
            for site in snapshot.sites
            if site.counts[HOLDS] >= _ENOUGH_HOLDS
        }

    def of(self, site: str) -> float:
        """Return the average of a site, or of the pool; infinity if it is not known."""
        return self._of_site.get(site, self._of_pool)


def _from(some: Sequence[Held]) -> str:
    number = Counter(one.site for one in some if one.site != OTHER)
    if len(number) != 1:
        return ""
    ((site, known),) = number.items()
    return f" ({'all' if known == len(some) else f'{known} of {len(some)}'} from {site})"
