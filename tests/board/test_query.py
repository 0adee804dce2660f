# SPDX-License-Identifier: Apache-2.0
"""The parameters of a request for the board."""

from __future__ import annotations

import pytest

from sqlalchemy_pool_exporter.board.query import Query, QueryError


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Query()),
        ("q=+pay+&other=1", Query(text="pay")),
        ("pool=a&pool=b%20c", Query(names=frozenset(("a", "b c")))),
        ("pools=1&workers=0&held=10000", Query(pools=1, workers=0, held=10_000)),
        ("q=" + "x" * 300, Query(text="x" * 200)),
    ],
)
def test_parameters(query: str, expected: Query) -> None:
    """A parameter that is not given has its default; unknown ones are ignored."""
    assert expected == Query.parsed(query, Query())


@pytest.mark.parametrize("query", ["held=", "held=-1", "held=1e3", "held=10001", "workers=9" * 99, "pools=²"])
def test_no_numbers(query: str) -> None:
    """What is no number, or asks for more than an answer may cost, is refused by its name."""
    with pytest.raises(QueryError, match=r"(held|workers|pools) is a number from 0 to 10000"):
        Query.parsed(query, Query())


def test_too_many_parameters() -> None:
    """A query string of thousands of fields is refused."""
    with pytest.raises(QueryError, match="too many parameters"):
        Query.parsed("&".join(["a=1"] * 5000), Query())
