# SPDX-License-Identifier: Apache-2.0
"""Shows a statement without its literals and comments; of a statement that is not understood it shows nothing.

``pg_stat_statements`` has such texts, too, but they keep the literals of commands such as ``ALTER ROLE``, and of
statements that it has evicted in between.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MOST_CHARACTERS: Final = 300
_CUT: Final = "…"
_LITERAL: Final = "?"
_ENDS: Final = frozenset(";")

# Of other commands only the first word is shown: SET takes a value that is neither quoted nor a number.
_SHOWN: Final = frozenset(("select", "insert", "update", "delete", "merge", "values", "with"))
_LITERAL_WORDS: Final = frozenset(("true", "false", "null"))

# PostgreSQL's lexical rules. The first alternative that matches counts. A literal that is not closed ends the text.
_TOKEN: Final = re.compile(
    r"""
    (?P<space> (?: \s | --[^\n\r]* )+ )
  | (?P<comment> /\* )
  | (?P<escaped> [eE]' (?: [^'\\] | \\.? | '' )* '? )
  | (?P<string> (?: [bBxXnN] | [uU]& )?+ ' (?: [^'] | '' )* '? )
  | (?P<name> (?: [uU]& )?+ " (?: [^"] | "" )* (?: " | (?P<cut> \Z ) ) )
  | (?P<word> [^\W\d] [\w$]* )
  | (?P<number> \.?[0-9] [\w.]* )
  | (?P<parameter> \$[0-9]+ )
  | \$ (?P<tag> (?: [^\W\d] \w* )? ) \$
  | (?P<other> [-()\[\],.;:*+/<>=~!@#%^&|`?] )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARKS: Final = re.compile(r"/\*|\*/")
_LISTS: Final = re.compile(r"\?(?: ?, ?\?)+")


class NotUnderstoodError(Exception):
    """The text is not one that the server's lexical rules allow, or they depend on a setting of its session."""


def without_literals(text: str) -> str:
    """Return a statement without literals and comments, on one line and cut; empty if it is not understood."""
    return shown(text, _tokens)


def shown(text: str, tokens: Callable[[str], Iterable[str]]) -> str:
    """Return what is shown of a statement.

    Args:
        text: with its literals.
        tokens: returns the tokens of a text, each literal as ``?``, or raises ``NotUnderstoodError``.
    """
    try:
        result = "; ".join(filter(None, map(_shown, _statements(tokens(text)))))
    except NotUnderstoodError:
        return ""
    result = _LISTS.sub(f"{_LITERAL}, {_CUT}", result)
    if not result.isprintable():
        return ""
    return result if len(result) <= _MOST_CHARACTERS else result[: _MOST_CHARACTERS - 1] + _CUT


def _statements(tokens: Iterable[str]) -> Iterator[list[str]]:
    statement: list[str] = []
    for token in tokens:
        if token in _ENDS:
            yield statement
            statement = []
        else:
            statement.append(token)
    yield statement


def _shown(tokens: list[str]) -> str:
    words = [token for token in tokens if token.strip()]
    command = next((word for word in words if word != "("), "")
    if command.lower() in _SHOWN:
        return " ".join("".join(_without_constants(tokens)).split())
    return f"{command} {_CUT}" if len(words) > 1 else command


def _without_constants(tokens: list[str]) -> Iterator[str]:
    before = ""
    for token in tokens:
        word = token.lower()
        # IS NULL and NOT NULL are no values.
        is_value = word in _LITERAL_WORDS and not (word == "null" and before in {"is", "not"})
        yield _LITERAL if is_value else token
        if not token.isspace():
            before = word


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotUnderstoodError
        at, kind, token = match.end(), match.lastgroup, match[0]
        if kind == "space":
            yield " "
        elif kind == "comment":
            at = _end_of_comment(text, at)
            yield " "
        elif kind in {"escaped", "string", "number"}:
            # Whether a backslash is one depends on the setting standard_conforming_strings.
            if kind == "string" and "\\" in token:
                raise NotUnderstoodError
            yield _LITERAL
        elif kind == "tag":
            end = text.find(token, at)
            at = len(text) if end < 0 else end + len(token)
            yield _LITERAL
        elif match["cut"] is not None:
            return
        else:
            yield token


def _end_of_comment(text: str, at: int) -> int:
    depth = 1
    for mark in _COMMENT_MARKS.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return len(text)
