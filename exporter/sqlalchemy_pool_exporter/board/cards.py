# SPDX-License-Identifier: Apache-2.0
"""The pools of the page, each with its bar, its numbers, what is wrong with it, and its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from .bar import bar, key
from .bar import words as bar_words
from .markup import Markup, joined, tag
from .pieces import badge, more, pairs, table
from .words import counted, duration, number, rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .query import Query
    from .schema import Board, Limits, Pool, Site, Worker

_SITES: Final = 3  # of a pool, in one line


def pools_section(board: Board, query: Query) -> Markup:
    """Return the pools that are asked for."""
    is_part = bool(query.text or query.names)
    every = tag("p", tag("a", "Show all pools", href="./")) if is_part else None
    nothing = "No pool has that." if is_part else "No pools."
    return tag(
        "section",
        tag("h2", "Pools, the worst first", id="pools"),
        every,
        key() if board["pools"] else None,
        [_pool(pool, at, query) for at, pool in enumerate(board["pools"])] or tag("p", nothing),
        more(board["pools_left_out"], query, "pools"),
        aria_labelledby="pools",
    )


def _pool(pool: Pool, at: int, query: Query) -> Markup:
    heading = f"pool-{at}"
    state, severity = pool["state"], pool["severity"]
    link = tag("a", tag("bdi", pool["name"]), href=f"?{urlencode({'pool': pool['name']})}")
    return tag(
        "section",
        tag("h3", link, (joined(" ", one) for one in _badges(pool)), id=heading),
        tag("p", _configuration(pool), class_="faint"),
        bar(pool["limits"], state),
        tag("p", bar_words(pool["limits"], state)),
        _held_by(pool),
        pairs(_numbers(pool), "numbers"),
        _processes(pool, query),
        _sites(pool) if query.names else None,
        class_="pool" if severity is None else f"pool {severity}",
        aria_labelledby=heading,
    )


def _badges(pool: Pool) -> Iterator[Markup]:
    """Yield a word for each kind of what is wrong; what it means is said above all pools."""
    for kind, severity in {one["kind"]: one["severity"] for one in pool["conditions"]}.items():
        yield badge(kind.replace("_", " "), severity)


def _held_by(pool: Pool) -> Markup | None:
    """Return which places in the application hold most."""
    holding = [one for one in pool["sites"] if one["held"]]
    if not holding:
        return None
    items = [
        joined(
            tag("bdi", one["site"], class_="code"),
            f" {number(one['held'])} (oldest {duration(one['longest_held_seconds'])})",
        )
        for one in holding[:_SITES]
    ]
    more = counted(len(holding[_SITES:]), "more place") if holding[_SITES:] else None
    listed = [joined(", ", item) if at else item for at, item in enumerate([*items, more] if more else items)]
    return tag("p", "Held by ", listed)


def _configuration(pool: Pool) -> str:
    kinds = {
        " on ".join(
            filter(None, (info["pool_class"], "+".join(filter(None, (info["dialect"], info["driver"])))))
        )
        for info in pool["info"]
    }
    limits = "no live process has it" if pool["limits"] is None else ", ".join(_limits(pool["limits"]))
    pools = counted(pool["instances"], "pool") if pool["instances"] > 1 else ""
    return "; ".join(filter(None, (", ".join(sorted(kinds)), pools, limits)))


def _limits(limits: Limits) -> Iterator[str]:
    if limits["size"] is None:
        yield "no limit"
    elif limits["max_overflow"] is None:
        yield f"size {number(limits['size'])}, unlimited overflow"
    else:
        yield f"size {number(limits['size'])} + {number(limits['max_overflow'])} overflow"
    if limits["timeout_seconds"] is not None:
        yield f"timeout {duration(limits['timeout_seconds'])}"
    if limits["recycle_seconds"] is not None:
        yield f"recycled after {duration(limits['recycle_seconds'])}"
    yield "pre-ping" if limits["pre_ping"] else "no pre-ping"


def _numbers(pool: Pool) -> Iterator[tuple[str, str | Markup]]:
    state, rates = pool["state"], pool["rates"]
    yield "Longest wait", duration(state["longest_wait_seconds"])
    yield "Longest hold", duration(state["longest_held_seconds"])
    if undisposed := sum(pool["counters"]["undisposed"].values()):
        yield "Not disposed of", f"{number(undisposed)} so far"
    if rates is None:
        yield "Checkouts", f"{number(pool['counters']['checkouts'])} so far"
        return
    yield "Checkouts", rate(rates["checkouts"])
    if rates["mean_wait_seconds"] is not None:
        yield "Mean wait", duration(rates["mean_wait_seconds"])
    if rates["mean_hold_seconds"] is not None:
        yield "Mean hold", duration(rates["mean_hold_seconds"])
    if rates["checkout_timeouts"]:
        yield "Timeouts", tag("strong", rate(rates["checkout_timeouts"]), class_="waiting")
    yield "Connects", rate(rates["connects"])
    yield "Closes", rate(rates["closes"])


def _processes(pool: Pool, query: Query) -> Markup | None:
    if not pool["workers"] and not pool["workers_left_out"]:
        return None
    query = query._replace(names=frozenset((pool["name"],)))
    caption = joined("Processes with ", tag("bdi", pool["name"]))
    columns = ("Process", "Connections", "Waiting", "Longest wait", "Longest hold")
    return joined(
        table(caption, columns, map(_process, pool["workers"]), class_="processes"),
        more(pool["workers_left_out"], query, "workers"),
    )


def _process(worker: Worker) -> tuple[str, ...]:
    state = worker["state"]
    pid = "" if worker["pid"] is None else f" pid {worker['pid']}"
    waiting = number(state["waiting"])
    return (
        joined(worker["worker"], tag("span", pid, " ", worker["program"] or "", class_="faint")),
        joined(bar(worker["limits"], state), bar_words(worker["limits"], {**state, "waiting": 0})),
        tag("strong", waiting, class_="waiting") if state["waiting"] else waiting,
        duration(state["longest_wait_seconds"]),
        duration(state["longest_held_seconds"]),
    )


def _sites(pool: Pool) -> Markup | None:
    if not pool["sites"]:
        return None
    caption = "Where the application checks connections out"
    columns = ("Where", "Held now", "Longest hold", "Checkouts", "Mean hold", "Nested")
    return table(caption, columns, map(_site, pool["sites"]), class_="sites")


def _site(site: Site) -> tuple[str, ...]:
    mean = site["hold_seconds"] / site["holds"] if site["holds"] else 0.0
    return (
        tag("bdi", site["site"], class_="code"),
        number(site["held"]),
        duration(site["longest_held_seconds"]),
        number(site["checkouts"]),
        duration(mean),
        number(site["nested_checkouts"]),
    )
