# SPDX-License-Identifier: Apache-2.0
"""What a request for the board asks for: which pools, and how many of each thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Mapping

# An answer is made in the application's process, so what it may cost is limited, whatever is asked.
MOST: Final = 10_000
_MOST_CHARACTERS: Final = 200
_MOST_FIELDS: Final = 1000


class QueryError(ValueError):
    """A parameter of a request is wrong."""


class Query(NamedTuple):
    """What is asked for. All else is only counted."""

    text: str = ""  # that the name, a site or a process of a pool contains, in any case
    names: frozenset[str] = frozenset()  # of pools; empty: all
    pools: int = 1000
    workers: int = 100  # of each pool
    held: int = 1000

    @classmethod
    def parsed(cls, query: str, defaults: Self) -> Query:
        """Return what a query string asks for.

        Args:
            query: such as ``pool=orders&held=10``.
            defaults: what holds where it says nothing.

        Raises:
            QueryError: a number is none, or there are too many parameters.
        """
        try:
            given = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise QueryError("too many parameters") from None
        return cls(
            given.get("q", [defaults.text])[-1].strip()[:_MOST_CHARACTERS],
            frozenset(given.get("pool", defaults.names)),
            *(_number(given, name, getattr(defaults, name)) for name in ("pools", "workers", "held")),
        )


def _number(given: Mapping[str, list[str]], name: str, default: int) -> int:
    if name not in given:
        return default
    text = given[name][-1]
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise QueryError(f"{name} is a number from 0 to {MOST}")
    return int(text)
