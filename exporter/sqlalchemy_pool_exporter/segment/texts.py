# SPDX-License-Identifier: Apache-2.0
"""The texts of this process that rows refer to by number: names of threads and tasks, and labels.

A number means the same text in all pages of the process, so each of these pages gets all texts. A text is never
removed; when there is no room, further ones have the number 0, and a reader shows none.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from .entries import Texts, fitting
from .page import HOLDERS, LABELS, TEXT_DOUBLES, TEXTS_PER_PAGE

if TYPE_CHECKING:
    from .pool_block import Pages


_MOST_BYTES: Final = 8 * TEXT_DOUBLES
_REPLACEMENT: Final = "\ufffd"


class _Texts:
    """Mutable state: the number of each text, the pages that get them, and whether a thread adds one."""

    __slots__ = ("is_adding", "numbers", "pages")

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, int]] = {HOLDERS: {}, LABELS: {}}
        self.pages: weakref.WeakSet[Pages] = weakref.WeakSet()
        # No lock: the others do not wait, because they check a connection out, and a time limit that strikes just after
        # a lock was acquired would leave it so.
        self.is_adding = False

    def add(self, purpose: int, text: str) -> int:
        """Return the number of a new text; 0 if another thread adds one now."""
        numbers, is_ours = self.numbers[purpose], False
        try:
            # straight line: only one thread can add
            if not self.is_adding:
                self.is_adding = is_ours = True
            # end of straight line
            if not is_ours:
                return 0
            number = numbers.setdefault(text, len(numbers) + 1)
            self.write()
            return number
        finally:
            if is_ours:
                self.is_adding = False

    def write(self) -> None:
        """Write what is not written yet; only the thread that adds may do so."""
        for pages in list(self.pages):
            for purpose, numbers in self.numbers.items():
                if numbers:
                    pages.write_texts(purpose, list(numbers))

    def write_now(self) -> None:
        """Write what is not written yet, unless another thread adds: it writes all."""
        is_ours = False
        try:
            # straight line: as above
            if not self.is_adding:
                self.is_adding = is_ours = True
            # end of straight line
            if is_ours:
                self.write()
        finally:
            if is_ours:
                self.is_adding = False


_texts: Final = _Texts()


def number_of(purpose: int, text: str) -> int:
    """Return the number of a text, from 1; 0 if there is no room, or if another thread adds one now.

    Args:
        purpose: ``HOLDERS`` or ``LABELS``.
        text: of which at most 64 bytes are kept. An empty one has the number 0.
    """
    numbers = _texts.numbers[purpose]
    number = numbers.get(text, 0)
    if number or not text:
        return number
    # A text that is shown otherwise is looked up twice each time, and not kept as it is: it may be long.
    shown = _shown(text)
    number = numbers.get(shown, 0)
    return number if number or len(numbers) >= TEXTS_PER_PAGE else _texts.add(purpose, shown)


def _shown(text: str) -> str:
    """Return a text as it is shown: short, and without characters that could forge a line of a log."""
    short = text[-_MOST_BYTES - 1 :]  # first: a character is a byte at least, and the text may be very long
    printable = (
        short if short.isprintable() else "".join(one if one.isprintable() else _REPLACEMENT for one in short)
    )
    return fitting(printable, _MOST_BYTES).decode()


def own() -> Texts:
    """Return all texts of this process."""
    return Texts(list(_texts.numbers[HOLDERS]), list(_texts.numbers[LABELS]))


def write_into(pages: Pages) -> None:
    """Let these pages have all texts, also later ones."""
    if pages in _texts.pages:
        return
    _texts.pages.add(pages)
    _texts.write_now()


def of_this_process() -> Texts:
    """Return all texts, for a reader in this process."""
    return Texts(*(list(_texts.numbers[purpose]) for purpose in (HOLDERS, LABELS)))


def after_fork() -> None:
    """In a forked child: a thread of the parent may have been adding, and the pages are the parent's."""
    _texts.is_adding = False
    _texts.pages = weakref.WeakSet()
