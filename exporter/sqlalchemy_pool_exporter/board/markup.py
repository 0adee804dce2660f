# SPDX-License-Identifier: Apache-2.0
"""HTML from elements. All text is escaped, because names of pools and sites come from the application."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_VOID: Final = frozenset(("input", "link", "meta"))
# A browser replaces a NUL, a lone surrogate is no UTF-8, and a change of direction would turn the text that follows.
_NOT_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *content: str | Iterable[str] | None, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: such as ``p``.
        content: escaped, unless it is an element; several are joined, and None is nothing.
        attributes: escaped; ``_`` in a name stands for ``-``, and one at the end is dropped. None and False leave an
            attribute out; True gives it no value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*content)}</{name}>")


def joined(*content: str | Iterable[str] | None) -> Markup:
    """Return several elements and texts as one."""
    parts: list[str] = []
    for one in content:
        if isinstance(one, Markup):
            parts.append(one)
        elif isinstance(one, str):
            parts.append(_escaped(one))
        elif one is not None:
            parts.append(joined(*one))
    return Markup("".join(parts))


def _escaped(text: str) -> str:
    return escape(_NOT_TEXT.sub("\ufffd", text))
