# SPDX-License-Identifier: Apache-2.0
"""MySQL's and MariaDB's lexical rules, for showing a statement without its literals and comments."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy_pool_exporter.sidecar.probe.statements import NotUnderstoodError, shown

_LITERAL: Final = "?"
# The first alternative that matches counts. What is in double quotes is a literal or, by a setting, a name: it is not
# shown. A literal that is not closed ends the text. A comment that begins with /*! is executed.
_TOKEN: Final = re.compile(
    r"""
    (?P<space> (?: \s | \#[^\n\r]* | --(?=[\s\0-\x1f]|\Z)[^\n\r]* )+ )
  | (?P<executed> /\*M?! )
  | (?P<comment> /\* .*? (?: \*/ | \Z ) )
  | (?P<string> (?: [bBxXnN] | _[A-Za-z0-9]+\s* )?+ (?: ' (?: [^'] | '' )* '? | " (?: [^"] | "" )* "? ) )
  | (?P<name> ` (?: [^`] | `` )* (?: ` | (?P<cut> \Z ) ) )
  | (?P<number> \.?[0-9] [\w.]* )
  | (?P<word> [^\W\d] [\w$]* )
  | (?P<variable> @@? [\w$.]* )
  | (?P<other> [-()\[\],.;:*+/<>=~!%^&|?] )
    """,
    re.VERBOSE | re.DOTALL,
)


def without_literals(text: str) -> str:
    """Return a statement without literals and comments, on one line and cut; empty if it is not understood."""
    return shown(text, _tokens)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match["executed"]:
            raise NotUnderstoodError
        at, kind, token = match.end(), match.lastgroup, match[0]
        if kind in {"space", "comment"}:
            # MariaDB and MySQL disagree on comments inside of comments.
            if kind == "comment" and "/*" in token[2:]:
                raise NotUnderstoodError
            tokens.append(" ")
        elif kind in {"string", "number"}:
            # Whether a backslash is one depends on the setting NO_BACKSLASH_ESCAPES.
            if "\\" in token:
                raise NotUnderstoodError
            tokens.append(_LITERAL)
        elif match["cut"] is not None:
            break
        else:
            tokens.append(token)
    return tokens
