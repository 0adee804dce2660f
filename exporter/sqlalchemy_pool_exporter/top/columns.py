# SPDX-License-Identifier: Apache-2.0
"""What the columns of the terminal's tables say; the screen and the table for a pipe share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.board.holders import process
from sqlalchemy_pool_exporter.board.holders import server as server_side
from sqlalchemy_pool_exporter.board.words import counted, duration, number

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.board.schema import Board, Condition, Finding, Held, Pool

POOLS: Final = (
    "POOL",
    "STATE",
    "IN USE",
    "IDLE",
    "OVERFLOW",
    "WAITING",
    "LONGEST WAIT",
    "LONGEST HOLD",
    "CHECKOUTS/S",
    "TIMEOUTS/S",
    "MEAN WAIT",
    "MEAN HOLD",
)
HELD: Final = ("HELD FOR", "WHERE", "POOL", "TASK OR THREAD", "LABEL", "PROCESS", "DATABASE SERVER")
# Their numbers stand at the right.
NUMBERS: Final = frozenset(POOLS[2:]) | {"HELD FOR"}


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: names come from applications."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def summary(board: Board) -> str:
    """Return the line above all: how many pools there are, and what they do."""
    totals = board["totals"]
    return (
        f"{counted(totals['pools'], 'pool')}, {counted(board['processes']['live'], 'process', 'processes')}, "
        f"{number(totals['in_use'])} in use, {number(totals['idle'])} idle, {number(totals['waiting'])} waiting, "
        f"longest wait {duration(totals['longest_wait_seconds'])}, "
        f"longest hold {duration(totals['longest_held_seconds'])}"
    )


def condition(one: Condition) -> str:
    """Return what is wrong."""
    return printable(one["text"] if one["pool"] is None else f"{one['pool']}: {one['text']}")


def finding(one: Finding) -> str:
    """Return what the audit found, with the name of the rule."""
    return printable(f"{one['pool'] or 'all pools'}: {one['rule']}: {one['text']}")


def pool_row(pool: Pool) -> tuple[str, ...]:
    """Return the cells of a pool."""
    state, rates = pool["state"], pool["rates"]
    capacity = None if pool["limits"] is None else pool["limits"]["capacity"]
    kinds = dict.fromkeys(one["kind"].replace("_", " ") for one in pool["conditions"])
    return (
        printable(pool["name"]),
        ", ".join(kinds) or ("gone" if pool["limits"] is None else "ok"),
        f"{number(state['in_use'])}{'' if capacity is None else f'/{number(capacity)}'}",
        number(state["idle"]),
        number(state["overflow"]),
        number(state["waiting"]),
        duration(state["longest_wait_seconds"]),
        duration(state["longest_held_seconds"]),
        *(
            ("-", "-", "-", "-")
            if rates is None
            else (
                f"{rates['checkouts']:.3g}",
                f"{rates['checkout_timeouts']:.3g}",
                _mean(rates["mean_wait_seconds"]),
                _mean(rates["mean_hold_seconds"]),
            )
        ),
    )


def _mean(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def held_row(one: Held) -> tuple[str, ...]:
    """Return the cells of a connection that is checked out."""
    waits = (
        "" if one["waits_seconds"] is None else f" (waits {duration(one['waits_seconds'])} for another one)"
    )
    return (
        duration(one["held_seconds"]),
        printable(one["site"]),
        printable(one["pool"]),
        printable(one["holder"] or "unknown") + waits,
        printable(one["label"] or ""),
        printable(process(one)),
        printable(server_side(one)),
    )
