# SPDX-License-Identifier: Apache-2.0
"""What is shown of sites: the places of an application that check connections out."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from .block import FIRST_COUNTER, OTHER_SITES, SITE_COUNTS
from .entries import CHECKOUTS, HELD_SECONDS, HOLDS, LEAKED, NESTED, OTHER, SUSPECTED
from .held import sites_held
from .snapshot import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .snapshot import Counts, Snapshot, Value

# How many sites of a name have series of their own: of those that were used within an hour, and at all.
MOST_SITES: Final = 20
MOST_SITES_EVER: Final = 5 * MOST_SITES
_IDLE_SECONDS: Final = 3600.0
_OTHERS: Final = OTHER_SITES - FIRST_COUNTER


class _Series:
    """The sites of one series.

    Mutable state: what is shown of each, and of all others; which the others are; and the last question and answer.
    """

    __slots__ = ("answer", "asked", "other", "others", "shown")

    def __init__(self) -> None:
        self.asked: Mapping[str, Counts] | None = None
        self.answer: dict[str, Counts] = {}
        self.shown: dict[str, _Shown] = {}
        self.others = {OTHER}
        self.other: Counts = [0.0] * SITE_COUNTS


class _Shown(NamedTuple):
    counts: Counts
    grown: float  # when they grew last


class ShownSites:
    """Chooses the sites whose counters are shown; all others are added up as ``OTHER``.

    A site that is shown stays so, and one that is not is counted in ``OTHER`` for good: a counter that moved from one
    to the other would seem to jump. A release of the application has other lines, so a site that was not used for long
    makes room for another one, and stays.

    The process of a pool that goes adds its counts to those of earlier ones, where there may be no room for all sites.
    What it adds to ``OTHER`` there is still shown at its site. Mutable state: all that was shown last.
    """

    def __init__(
        self,
        most: int = MOST_SITES,
        *,
        most_ever: int = MOST_SITES_EVER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            most: how many sites that were used lately.
            most_ever: how many sites at all.
            monotonic: seconds.
        """
        self._most, self._most_ever, self._monotonic = most, most_ever, monotonic
        self._series: dict[tuple[str, ...], _Series] = {}

    def of(
        self, by_series: Mapping[tuple[str, ...], Mapping[str, Counts]]
    ) -> dict[tuple[str, ...], dict[str, Counts]]:
        """Return the counts by series and site."""
        self._series = {series: self._series.get(series) or _Series() for series in by_series}
        return {series: self._reduced(series, by_site) for series, by_site in by_series.items()}

    def _reduced(self, name: tuple[str, ...], by_site: Mapping[str, Counts]) -> dict[str, Counts]:
        series = self._series[name]
        if series.asked == by_site:
            return series.answer
        self._choose(series, by_site)
        found = {site: one.counts for site, one in series.shown.items()}
        # Rounded once: what is shown and what is read is the same for nearly all sites.
        columns = zip(
            *by_site.values(), *([-count for count in counts] for counts in found.values()), strict=True
        )
        other = list(map(math.fsum, columns))
        if any(
            now < last
            for at, (now, last) in enumerate(zip(other, series.other, strict=True))
            if at != HELD_SECONDS
        ):
            # The counts began anew: the process forked, or the pool is instrumented again.
            self._series[name] = _Series()
            return self._reduced(name, by_site)
        series.other = list(map(max, series.other, other))
        if by_site.keys() - found.keys() or any(series.other):
            found[OTHER] = series.other
        series.asked, series.answer = by_site, found
        return found

    def _choose(self, series: _Series, by_site: Mapping[str, Counts]) -> None:
        """Note the counts of the sites that are shown, and show further ones."""
        now, shown = self._monotonic(), series.shown
        for site, (counts, grown) in shown.items():
            most = list(map(max, counts, by_site.get(site, counts)))
            shown[site] = _Shown(most, now if most != counts else grown)
        series.others.intersection_update({OTHER, *by_site})
        new = sorted(
            by_site.keys() - shown.keys() - series.others, key=lambda site: (-by_site[site][CHECKOUTS], site)
        )
        used = sum(now - one.grown <= _IDLE_SECONDS for one in shown.values())
        room = max(0, min(self._most - used, self._most_ever - len(shown)))
        shown.update((site, _Shown(list(by_site[site]), now)) for site in new[:room])
        series.others.update(new[room:])


def counters(by_site: Mapping[str, Counts]) -> dict[str, Value]:
    """Return the counters of the sites of one name, by the key of their metric.

    If no site was recorded there are none, except of suspected leaks.
    """
    suspected: Value = {site: counts[SUSPECTED] for site, counts in by_site.items()}
    if not any(counts[CHECKOUTS] for counts in by_site.values()):
        has_any = any(counts[SUSPECTED] for counts in by_site.values())
        return {"suspected_leaks_total": suspected} if has_any else {}
    return {
        "checkouts_by_site_total": {site: counts[CHECKOUTS] for site, counts in by_site.items()},
        "hold_seconds_by_site": {
            site: Summary(counts[HOLDS], counts[HELD_SECONDS]) for site, counts in by_site.items()
        },
        "nested_checkouts_total": {site: counts[NESTED] for site, counts in by_site.items()},
        "leaked_checkouts_by_site_total": {site: counts[LEAKED] for site, counts in by_site.items()},
        "suspected_leaks_total": suspected,
    }


def held_at(snapshots: Sequence[Snapshot]) -> dict[str, tuple[float, float]] | None:
    """Return how many connections each site holds, and since when; None if the pools record no sites."""
    if not any(snapshot.sites or snapshot.counts[_OTHERS + CHECKOUTS] for snapshot in snapshots):
        return None
    out = [one for snapshot in snapshots for one in sites_held(snapshot)]
    number = Counter(site for site, _ in out)
    shown = {site for site, _ in sorted(number.items(), key=lambda item: (-item[1], item[0]))[:MOST_SITES]}
    found: dict[str, tuple[float, float]] = {}
    for site, began in out:
        series = site if site in shown else OTHER
        held, since = found.get(series, (0.0, began))
        found[series] = (held + 1.0, min(since, began))
    return found
