# SPDX-License-Identifier: Apache-2.0
"""What is shown of sites: the places of an application that check connections out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from .entries import CHECKOUTS, HELD_SECONDS, HOLDS, LEAKED, NESTED, OTHER, SUSPECTED
from .held import held, is_deadlocked
from .snapshot import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .snapshot import Counts, Snapshot, Value

# How many sites of a name have series of their own.
MOST_SITES: Final = 20


class ShownSites:
    """Chooses the sites whose counters are shown; all others are added up as ``OTHER``.

    A site that is shown stays so, and one that is not is counted in ``OTHER`` for good: a counter that moved from one
    to the other would seem to jump. Mutable state: the sites that are shown, by the labels of their series.
    """

    def __init__(self, most: int = MOST_SITES) -> None:
        self._most = most
        self._shown: dict[tuple[str, ...], dict[str, None]] = {}
        self._others: dict[tuple[str, ...], set[str]] = {}

    def of(
        self, by_series: Mapping[tuple[str, ...], Mapping[str, Counts]]
    ) -> dict[tuple[str, ...], dict[str, Counts]]:
        """Return the counts by series and site."""
        for series in self._shown.keys() - by_series.keys():
            del self._shown[series], self._others[series]
        return {series: self._reduced(series, by_site) for series, by_site in by_series.items()}

    def _reduced(self, series: tuple[str, ...], by_site: Mapping[str, Counts]) -> dict[str, Counts]:
        shown = self._shown.setdefault(series, {})
        others = self._others.setdefault(series, {OTHER})
        new = sorted(
            by_site.keys() - shown.keys() - others, key=lambda site: (-by_site[site][CHECKOUTS], site)
        )
        room = self._most - len(shown)
        shown.update(dict.fromkeys(new[:room]))
        others.update(new[room:])
        found = {site: by_site[site] for site in shown if site in by_site}
        rest = [by_site[site] for site in by_site.keys() - found.keys()]
        if rest:
            found[OTHER] = [sum(values) for values in zip(*rest, strict=True)]
        return found


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


def state(snapshots: Sequence[Snapshot], *, now: float) -> dict[str, Value]:
    """Return what the sites of live pools of one name hold, by the key of the metric.

    Args:
        snapshots: of the pools.
        now: seconds of ``time.monotonic()``.
    """
    values: dict[str, Value] = {"self_deadlocked": float(sum(map(is_deadlocked, snapshots)))}
    if not any(snapshot.sites for snapshot in snapshots):
        return values
    out = [one for snapshot in snapshots for one in held(snapshot)]
    number = Counter(one.site for one in out)
    shown = {site for site, _ in sorted(number.items(), key=lambda item: (-item[1], item[0]))[:MOST_SITES]}
    return values | {
        "held_connections": _grouped(((one.site, 1.0) for one in out), shown, sum),
        "site_longest_held_seconds": _grouped(
            ((one.site, max(0.0, now - one.since)) for one in out), shown, max
        ),
    }


def _grouped(
    values: Iterable[tuple[str, float]], shown: set[str], join: Callable[[Iterable[float]], float]
) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for site, value in values:
        found.setdefault(site if site in shown else OTHER, []).append(value)
    return {site: float(join(some)) for site, some in found.items()}
