# SPDX-License-Identifier: Apache-2.0
"""The texts of this process that rows refer to by number: names of threads and tasks, and labels.

A number means the same text in all pages of the process, so each of these pages gets all texts. A text is never
removed; when there is no room, further ones have the number 0, and a reader shows none.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

from .entries import Texts
from .page import HOLDERS, LABELS, TEXTS_PER_PAGE

if TYPE_CHECKING:
    from .pool_block import Pages


class _Texts:
    """Mutable state: the number of each text, and the pages that get them."""

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, int]] = {HOLDERS: {}, LABELS: {}}
        self.pages: weakref.WeakSet[Pages] = weakref.WeakSet()
        # Of the thread that adds one; the others never wait, because they check a connection out.
        self.adding = threading.Lock()

    def write(self) -> None:
        for pages in list(self.pages):
            for purpose, numbers in self.numbers.items():
                if numbers:
                    pages.write_texts(purpose, list(numbers))


_texts: Final = _Texts()


def number_of(purpose: int, text: str) -> int:
    """Return the number of a text, from 1; 0 if there is no room, or if another thread adds one now.

    Args:
        purpose: ``HOLDERS`` or ``LABELS``.
        text: of which at most 64 bytes are kept.
    """
    numbers = _texts.numbers[purpose]
    number = numbers.get(text, 0)
    if number or len(numbers) >= TEXTS_PER_PAGE or not _texts.adding.acquire(blocking=False):
        return number
    try:
        number = numbers.setdefault(text, len(numbers) + 1)
        _texts.write()
    finally:
        _texts.adding.release()
    return number


def own() -> Texts:
    """Return all texts of this process."""
    return Texts(list(_texts.numbers[HOLDERS]), list(_texts.numbers[LABELS]))


def write_into(pages: Pages) -> None:
    """Let these pages have all texts, also later ones."""
    if pages in _texts.pages:
        return
    _texts.pages.add(pages)
    if _texts.adding.acquire(blocking=False):
        try:
            _texts.write()
        finally:
            _texts.adding.release()


def of_this_process() -> Texts:
    """Return all texts, for a reader in this process."""
    return Texts(*(list(_texts.numbers[purpose]) for purpose in (HOLDERS, LABELS)))


def after_fork() -> None:
    """In a forked child: a thread of the parent may have held the lock, and the pages are the parent's."""
    _texts.adding = threading.Lock()
    _texts.pages = weakref.WeakSet()
