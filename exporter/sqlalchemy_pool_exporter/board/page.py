# SPDX-License-Identifier: Apache-2.0
"""The page: complete without JavaScript; the script puts a newer board in place of the one that is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from . import static
from .cards import pools_section
from .holders import held_table
from .markup import Markup, joined, tag
from .pieces import badge, href, more, pairs, pool_link
from .words import duration, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .query import Query
    from .schema import Board, Condition

_CONDITIONS: Final = 20


class Link(NamedTuple):
    """Another path of the endpoint, relative to the page's."""

    href: str
    text: str
    description: str


def page(board: Board, query: Query, links: Sequence[Link]) -> str:
    """Return the page.

    Args:
        board: what is asked for.
        query: which asked for it.
        links: other paths of the endpoint.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", "Connection pools"),
        tag("link", rel="icon", type="image/svg+xml", href=static.href("icon.svg")),
        tag("link", rel="stylesheet", href=static.href("board.css")),
        tag("script", src=static.href("board.js"), defer=True),
    )
    body = tag(
        "body",
        tag("a", "Skip to the pools", class_="skip", href="#board"),
        _header(query),
        tag(
            "main",
            _board(board, query),
            id="board",
            tabindex="-1",
            data_conditions=" ".join(f"{one['kind']}:{one['pool']}" for one in board["conditions"]),
            data_news=_news(board),
        ),
        _footer(board, links),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(query: Query) -> Markup:
    return tag(
        "header",
        tag("h1", tag("a", "Connection pools", href="./")),
        tag(
            "form",
            tag("label", "Filter ", tag("kbd", "/"), for_="q"),
            tag(
                "input",
                id="q",
                name="q",
                type="search",
                value=query.text,
                placeholder="pool, site or process",
                autocomplete="off",
            ),
            tag("button", "Filter"),
            role="search",
            method="get",
        ),
        tag("button", "Pause", id="pause", type="button", aria_pressed="false", hidden=True),
        tag("span", tag("a", "Refresh", href=href(query)), id="state", class_="faint"),
        tag("p", id="news", class_="unseen", role="status"),
    )


def _footer(board: Board, links: Sequence[Link]) -> Markup:
    items = (tag("li", tag("a", link.text, href=link.href, title=link.description)) for link in links)
    return tag(
        "footer",
        tag("nav", tag("ul", items), aria_label="Endpoints"),
        tag("p", f"sqlalchemy-pool-exporter {board['exporter']}"),
    )


def _news(board: Board) -> str:
    found = board["conditions"]
    if not found:
        return "Nothing is wrong now"
    first = found[0]
    more = f", and {number(len(found) - 1)} more" if len(found) > 1 else ""
    return f"{_named(first)}{first['text']}{more}"


def _named(condition: Condition) -> str:
    return "" if condition["pool"] is None else f"{condition['pool']}: "


def _board(board: Board, query: Query) -> Markup:
    return joined(
        _totals(board),
        None if board["note"] is None else tag("p", f"No pools: {board['note']}."),
        _conditions(board, query),
        _findings(board, query),
        pools_section(board, query),
        held_table(board, _more_held(board, query)),
    )


def _more_held(board: Board, query: Query) -> Markup | None:
    return more(board["held_left_out"], query, "held")


def _totals(board: Board) -> Markup:
    totals, processes = board["totals"], board["processes"]
    waiting = number(totals["waiting"])
    numbers: list[tuple[str, str | Markup]] = [
        ("Pools", number(totals["pools"])),
        ("Processes", number(processes["live"])),
        ("In use", number(totals["in_use"])),
        ("Idle", number(totals["idle"])),
        ("Waiting", tag("strong", waiting, class_="waiting") if totals["waiting"] else waiting),
        ("Longest wait", duration(totals["longest_wait_seconds"])),
        ("Longest hold", duration(totals["longest_held_seconds"])),
    ]
    return tag(
        "section",
        tag("h2", "All pools", id="all-pools"),
        pairs(numbers, "totals"),
        aria_labelledby="all-pools",
    )


def _conditions(board: Board, query: Query) -> Markup:
    found = board["conditions"]
    shown = found if query.names else found[:_CONDITIONS]
    left_out = len(found) - len(shown) + board["conditions_left_out"]
    items = (
        tag(
            "li",
            badge(one["severity"], one["severity"]),
            " ",
            pool_link(one["pool"]),
            one["text"],
            class_=one["severity"],
        )
        for one in shown
    )
    return tag(
        "section",
        tag("h2", "What is wrong now", id="conditions"),
        tag("ul", items, class_="conditions") if shown else tag("p", "Nothing."),
        tag("p", f"{number(left_out)} more, of other pools") if left_out else None,
        aria_labelledby="conditions",
    )


def _findings(board: Board, query: Query) -> Markup | None:
    found = board["findings"]
    if not found:
        return None
    shown = found if query.names else found[:_CONDITIONS]
    left_out = len(found) - len(shown) + board["findings_left_out"]
    items = (
        tag(
            "li",
            badge(one["severity"], one["severity"]),
            " ",
            pool_link(one["pool"]),
            one["text"],
            ". ",
            tag("span", one["remedy"], class_="faint"),
            class_=one["severity"],
        )
        for one in shown
    )
    return tag(
        "section",
        tag("h2", "What the audit finds", id="findings"),
        tag("ul", items, class_="conditions"),
        tag("p", f"{number(left_out)} more") if left_out else None,
        aria_labelledby="findings",
    )
