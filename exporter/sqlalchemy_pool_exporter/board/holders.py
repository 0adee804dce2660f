# SPDX-License-Identifier: Apache-2.0
"""The table of who holds what, since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .markup import Markup, joined, tag
from .pieces import table
from .words import duration

if TYPE_CHECKING:
    from .schema import Blocker, Board, Held, ServerSide

_COLUMNS: Final = ("Held for", "Where", "Pool", "Task or thread", "Process", "Database server")


def held_table(board: Board, more: Markup | None) -> Markup:
    """Return the table.

    Args:
        board: what is shown.
        more: a link to what is left out.
    """
    rows = [_row(one) for one in board["held"]]
    caption = "Connections that are checked out, the oldest first"
    return tag(
        "section",
        tag("h2", "Who holds what", id="held"),
        tag("div", table(caption, _COLUMNS, rows, class_="holders"), more, class_="held")
        if rows
        else tag("p", "Nothing is checked out."),
        aria_labelledby="held",
    )


def _row(one: Held) -> tuple[str, ...]:
    return (
        duration(one["held_seconds"]),
        tag("bdi", one["site"], class_="code"),
        tag("bdi", one["pool"]),
        who(one),
        process(one),
        server(one),
    )


def who(one: Held) -> Markup:
    """Return which thread or task holds it, what it said it does, and whether it waits for another connection."""
    label = None if one["label"] is None else joined(" ", tag("bdi", one["label"]))
    waits = one["waits_seconds"]
    nested = None if waits is None else f" waits {duration(waits)} for another one"
    return joined(tag("bdi", one["holder"] or "unknown"), label, nested)


def process(one: Held) -> str:
    """Return which process holds it."""
    pid = None if one["pid"] is None else f"pid {one['pid']}"
    return " ".join(filter(None, (one["worker"], pid, one["program"])))


def server(one: Held) -> str:
    """Return what the database server says of it."""
    session = "" if one["server_pid"] is None else f"session {one['server_pid']}"
    said = one["server"]
    if said is None:
        return session or "unknown"
    return "; ".join(
        filter(None, (_state(said), session, *map(_blocker, said["blocked_by"]), said["statement"]))
    )


def _state(said: ServerSide) -> str:
    seconds = said["state_seconds"]
    since = "" if seconds is None else f" for {duration(seconds)}"
    event = f" ({said['wait_event']})" if said["wait_event"] else ""
    return f"{said['state'].replace('_', ' ')}{since}{event}"


def _blocker(one: Blocker) -> str:
    if not one["server_pid"]:
        return "blocked by a prepared transaction"
    where = one["site"] or ("a connection idle in its pool" if one["pool"] else one["application"])
    worker = f" in {one['worker']} pid {one['pid']}" if one["pool"] else ""
    named = f" {where}{worker}," if where else ""
    return f"blocked by{named} session {one['server_pid']}, {one['state'].replace('_', ' ')}"
