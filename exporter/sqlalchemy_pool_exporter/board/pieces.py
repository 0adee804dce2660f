# SPDX-License-Identifier: Apache-2.0
"""Pieces that several parts of the page have: links to more, badges, pairs of names and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from .markup import Markup, joined, tag
from .query import MOST, Query
from .words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DEFAULTS: Final = Query(pools=20, workers=8, held=50)  # of the page
_LEFT_OUT: Final = {
    "pools": ("more pool", "more pools"),
    "workers": ("more process", "more processes"),
    "held": ("more connection", "more connections"),
}
_MORE: Final = 10  # times as many pools, processes or connections, behind a link


def href(query: Query, **changes: Any) -> str:
    """Return a link to the page with another query."""
    wanted = query._replace(**changes)
    given: list[tuple[str, object]] = [("pool", name) for name in sorted(wanted.names)]
    if wanted.text:
        given.append(("q", wanted.text))
    given += [
        (name, getattr(wanted, name))
        for name in ("pools", "workers", "held")
        if getattr(wanted, name) != getattr(DEFAULTS, name)
    ]
    return f"?{urlencode(given)}" if given else "./"


def more(left_out: int, query: Query, field: str) -> Markup | None:
    """Return a link to what is left out.

    Args:
        left_out: how many there are.
        query: of the page.
        field: the field of the query that limits them.
    """
    if not left_out:
        return None
    text = counted(left_out, *_LEFT_OUT[field])
    most = min(MOST, max(1, getattr(query, field)) * _MORE)
    return tag(
        "p", tag("a", text, href=href(query, **{field: most})) if most > getattr(query, field) else text
    )


def pairs(named: Iterable[tuple[str, str | Markup]], class_: str) -> Markup:
    """Return names with their values."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in named), class_=class_)


def table(
    caption: str | Iterable[str], columns: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str
) -> Markup:
    """Return a table; the first cell of a row is its header.

    On a narrow screen its style makes each row a block with the names of the columns before the values. Some browsers
    take that for no table any more, unless the roles are said.

    Args:
        caption: what the table shows.
        columns: their names.
        rows: cells, which are texts or elements.
        class_: for the style.
    """
    heads = (tag("th", name, scope="col", role="columnheader") for name in columns)
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", heads, role="row"), role="rowgroup"),
        tag("tbody", (tag("tr", _cells(row, columns), role="row") for row in rows), role="rowgroup"),
        class_=class_,
        role="table",
    )


def _cells(row: Sequence[str], columns: Sequence[str]) -> Iterator[Markup]:
    for at, (cell, column) in enumerate(zip(row, columns, strict=True)):
        if at:
            yield tag("td", cell, data_label=column, role="cell")
        else:
            yield tag("th", cell, data_label=column, scope="row", role="rowheader")


def badge(text: str, severity: str) -> Markup:
    """Return a word in the colour of a severity."""
    return tag("span", text, class_=f"badge {severity}")


def pool_link(name: str | None) -> Markup | None:
    """Return a link to a pool, before what is said of it; nothing if that is said of all."""
    if name is None:
        return None
    return joined(tag("a", tag("bdi", name), href=f"?{urlencode({'pool': name})}"), ": ")
