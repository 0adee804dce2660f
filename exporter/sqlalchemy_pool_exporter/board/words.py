# SPDX-License-Identifier: Apache-2.0
"""Numbers and durations as people read them."""

from __future__ import annotations

from typing import Final

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0
_THOUSAND: Final = 1000.0


def duration(seconds: float) -> str:
    """Return a duration with two or three digits, such as ``15 ms``, ``4.2 s``, ``42 s`` or ``5 min 10 s``."""
    if seconds < 9.95:  # noqa: PLR2004 - one decimal place below ten
        milliseconds = round(seconds * _THOUSAND)
        return (
            f"{seconds:.1f} s"
            if milliseconds >= _THOUSAND
            else f"{milliseconds} ms"
            if milliseconds
            else "0 s"
        )
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two(whole, _MINUTE, "min", 1.0, "s")
    return _two(whole, _HOUR, "h", _MINUTE, "min") if whole < _DAY else _two(whole, _DAY, "d", _HOUR, "h")


def _two(whole: int, large: float, name: str, small: float, rest: str) -> str:
    first, second = int(whole // large), int(whole % large // small)
    return f"{first} {name} {second} {rest}" if second else f"{first} {name}"


def number(value: float) -> str:
    """Return a number of things: ``3``, ``12,345``."""
    return f"{round(value):,}"


def rate(per_second: float) -> str:
    """Return a rate: ``0/s``, ``0.3/s``, ``12/s``."""
    return f"{per_second:.3g}/s" if per_second < _THOUSAND else f"{per_second:,.0f}/s"


def counted(count: float, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 caller``, ``2 callers``."""
    return f"{number(count)} {singular if round(count) == 1 else plural or f'{singular}s'}"
