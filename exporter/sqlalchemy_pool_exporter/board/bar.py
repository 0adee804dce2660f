# SPDX-License-Identifier: Apache-2.0
"""The bar of a pool's capacity: what is in use, idle and free, and behind it the callers that wait for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .markup import Markup, tag
from .words import counted, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .schema import Limits, State

# Width of a bar in units of its drawing.
_WIDTH: Final = 1000.0
KINDS: Final = {
    "in-use": "in use",
    "overflow": "in use beyond the pool's size",
    "idle": "idle",
    "free": "not opened",
    "waits": "callers that wait",
}


def bar(limits: Limits | None, state: State) -> Markup:
    """Return the bar as a drawing with a text that says the same."""
    rectangles = []
    at = 0.0
    for kind, share in _shares(limits, state):
        width = share * _WIDTH
        rectangles.append(tag("rect", class_=kind, x=f"{at:.1f}", width=f"{width:.1f}", height="10"))
        at += width
    return tag(
        "svg",
        rectangles,
        role="img",
        viewBox=f"0 0 {_WIDTH:.0f} 10",
        preserveAspectRatio="none",
        aria_label=words(limits, state),
    )


def words(limits: Limits | None, state: State) -> str:
    """Return what a bar shows: ``14 of 15 in use (4 beyond size), 1 idle; 2 callers wait``."""
    capacity = None if limits is None else limits["capacity"]
    of = "" if capacity is None else f" of {number(capacity)}"
    beyond = f" ({number(state['overflow'])} beyond size)" if state["overflow"] else ""
    waiting = state["waiting"]
    wait = f"; {counted(waiting, 'caller waits', 'callers wait')}" if waiting else ""
    return f"{number(state['in_use'])}{of} in use{beyond}, {number(state['idle'])} idle{wait}"


def key() -> Markup:
    """Return what the colours mean."""
    return tag(
        "p",
        (
            tag(
                "span",
                tag(
                    "svg",
                    tag("rect", class_=kind, width="10", height="10"),
                    viewBox="0 0 10 10",
                    aria_hidden="true",
                ),
                f" {name}",
            )
            for kind, name in KINDS.items()
        ),
        class_="key faint",
    )


def _shares(limits: Limits | None, state: State) -> Iterator[tuple[str, float]]:
    """Yield each kind with its share of the bar, which has room for the capacity and for the callers that wait."""
    capacity = None if limits is None else limits["capacity"]
    opened = state["in_use"] + state["idle"]
    overflow = min(state["overflow"], state["in_use"])
    numbers = {
        "in-use": state["in_use"] - overflow,
        "overflow": overflow,
        "idle": state["idle"],
        "free": max(0.0, capacity - opened) if capacity is not None else 0.0,
        "waits": state["waiting"],
    }
    total = sum(numbers.values())
    if not total:
        yield "free", 1.0
        return
    for kind, count in numbers.items():
        if count:
            yield kind, count / total
