# SPDX-License-Identifier: Apache-2.0
"""A statement is shown without literals and comments, and not at all if it is not understood."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.sidecar.probe.statements import without_literals

SECRET = "topsecret"  # noqa: S105 - stands for any literal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT * FROM t WHERE id = 42", "SELECT * FROM t WHERE id = ?"),
        ("SELECT a.b, $1 FROM t a\n WHERE x = 'it''s' AND y=-1.5e-3", "SELECT a.b, $1 FROM t a WHERE x = ? AND y=-?-?"),
        ("select 0x1F, 1_000, .5, '1', b'01', X'ff', N'n', U&'d!0061' UESCAPE '!'", "select ?, … UESCAPE ?"),
        (r"SELECT E'a\'topsecret', e'b'", "SELECT ?, …"),
        ("SELECT $$topsecret 'x$$, $a$b$$topsecret$a$ FROM t$1$2", "SELECT ?, … FROM t$1$2"),
        ("SELECT 'a'\n'topsecret'", "SELECT ? ?"),
        ('SELECT "Order ""s""", u&"d\\0061t" FROM "T"', 'SELECT "Order ""s""", u&"d\\0061t" FROM "T"'),
        ("SELECT 1 -- topsecret\n, 2 /* topsecret /* more */ topsecret */ + 3", "SELECT ?, … + ?"),
        ("/*app='topsecret'*/ SELECT x /*", "SELECT x"),
        ("INSERT INTO t VALUES (1, 'a', NULL), (2, 'b', true)", "INSERT INTO t VALUES (?, …), (?, …)"),
        ("SELECT x IS NULL, y IS NOT NULL, z = null FROM t", "SELECT x IS NULL, y IS NOT NULL, z = ? FROM t"),
        ("WITH q AS (SELECT 1) SELECT * FROM q", "WITH q AS (SELECT ?) SELECT * FROM q"),
        ("(SELECT 1) UNION (SELECT 2)", "(SELECT ?) UNION (SELECT ?)"),
        ("SELECT j @> '{\"a\": 1}' AND j ? 'a' AND a[1:2]", "SELECT j @> ? AND j ? ? AND a[?:?]"),
        ("SELECT 'not closed topsecret", "SELECT ?"),
        ("SELECT $tag$ not closed topsecret $$", "SELECT ?"),
        ('SELECT 1, "not closed topsecret', "SELECT ?,"),
        ("SELECT x FROM t WHERE y = E'topsecret\\", "SELECT x FROM t WHERE y = ?"),
        ("SELECT 1 -- a\r, 'it\n topsecret'", "SELECT ?, …"),  # a carriage return ends a comment
        ("SELECT E'a'\n'b\\'topsecret'", ""),  # the second part has escapes, too
        ("SELECT $\u0663$topsecret$\u0663$", ""),  # a digit elsewhere, but a letter to PostgreSQL
        ("BEGIN", "BEGIN"),
        ("COMMIT;", "COMMIT"),
        ("SET app.token = topsecret", "SET …"),
        ("ALTER ROLE app PASSWORD 'topsecret'", "ALTER …"),
        ("SELECT 1; SET app.token = topsecret", "SELECT ?; SET …"),
        ("EXPLAIN SELECT 1", "EXPLAIN …"),
        ("DO $$ topsecret $$", "DO …"),
        ("", ""),
        ("  \n", ""),
        ("-- topsecret", ""),
        # Depends on standard_conforming_strings.
        (r"SELECT '\', topsecret, '", ""),
        # Not PostgreSQL's.
        (r"\d topsecret", ""),
        ("SELECT $topsecret", ""),
        ("SELECT {topsecret}", ""),
        ("SELECT a\x00topsecret", ""),
        ("'topsecret'", "?"),
        ("42 topsecret", "? …"),
    ],
)  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    """Each literal is a question mark; of commands that take other values only the first word is there."""
    assert shown == without_literals(text)


def test_it_is_cut() -> None:
    """A long statement is cut."""
    assert 300 == len(shown := without_literals(f"SELECT {', '.join(string.ascii_letters * 10)}"))
    assert shown.startswith("SELECT a, b, c")
    assert shown.endswith("…")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def _plain(text: str) -> str:
    return "'" + (text + SECRET + text).replace("'", "''") + "'"


def _escaped(text: str) -> str:
    return "E'" + (text + SECRET + text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _dollars(text: str) -> str:
    return f"$x${text.replace('$', '')}{SECRET}$x$"


def _comment(text: str) -> str:
    return f"1 /* {text.replace('/', '').replace('*', '')}{SECRET} */"


LITERALS = st.tuples(st.sampled_from((_plain, _escaped, _dollars, _comment)), TEXTS).map(
    lambda pair: pair[0](pair[1])
)


@settings(max_examples=500)
@given(st.lists(LITERALS, min_size=1, max_size=5), st.integers(0, 400))
def test_no_literal_is_shown(literals: list[str], cut: int) -> None:
    """Whatever a literal contains, and wherever the server cuts the statement, nothing of it is shown."""
    text = f"SELECT {', '.join(literals)} FROM t"  # noqa: S608 - no server gets it
    for shown in (without_literals(text), without_literals(text[:cut])):
        assert SECRET[:4] not in shown
