# SPDX-License-Identifier: Apache-2.0
"""MySQL's statements are shown without literals and comments, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.sidecar.probe.mysql.statements import without_literals


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM item WHERE id = 17", "SELECT * FROM item WHERE id = ?"),
        ("select `a``b` from `t` where name = 'it''s'", "select `a``b` from `t` where name = ?"),
        ('SELECT "secret" FROM t', "SELECT ? FROM t"),
        ("SELECT _utf8mb4'secret', x'AF', N'secret', 0xAF, 1e5", "SELECT ?, …"),
        ("SELECT 1 # secret\n FROM t -- secret", "SELECT ? FROM t"),
        ("SELECT 5--1", "SELECT ?--?"),
        ("SELECT /* secret */ a FROM t", "SELECT a FROM t"),
        ("UPDATE t SET a = @secret := 3", "UPDATE t SET a = @secret := ?"),
        ("INSERT INTO t VALUES (1, 'x'), (2, 'y')", "INSERT INTO t VALUES (?, …), (?, …)"),
        ("SET PASSWORD = PASSWORD('secret')", "SET …"),
        ("ALTER USER u IDENTIFIED BY 'secret'", "ALTER …"),
        ("COMMIT", "COMMIT"),
        ("SELECT a IS NULL, NULL", "SELECT a IS NULL, ?"),
        ("SELECT 'a\\'secret'", ""),  # a backslash depends on a setting
        ('SELECT "a\\"secret"', ""),
        ("SELECT /*! secret */ 1", ""),  # the server executes it
        ("SELECT /*M! secret */ 1", ""),
        ("SELECT /* a /* b */ secret */ 1", ""),
        ("SELECT 'cut in the mid", "SELECT ?"),
        ("SELECT `cut in the mid", "SELECT"),
        ("SELECT 1 /* cut in the", "SELECT ?"),
    ],
)
def test_statements(statement: str, expected: str) -> None:
    """Literals and comments are left out; what a server could read in two ways is not shown."""
    assert expected == without_literals(statement)


@given(st.text(alphabet="'\"`\\/*#-! a1_\n"), st.sampled_from("'\""))
def test_no_literal_is_shown(around: str, quote: str) -> None:
    """Whatever stands before it, the content of a literal is not shown where it is one."""
    text = f"SELECT {quote}hidden{quote} {around}"
    assert "hidden" not in without_literals(text)
