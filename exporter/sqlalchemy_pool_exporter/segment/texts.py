# SPDX-License-Identifier: Apache-2.0
"""The texts of this process that rows refer to by number: names of threads and tasks, and labels.

A number means the same text in all pages of the process, so each of these pages gets all texts. When there is no room,
further ones have the number 0, and a reader shows none.

A label is never removed. The name of a thread or task is a ``Name``, which its holder keeps, and so each row that
refers to it. When there is no room, the names of which nothing is left make room for others, once a second: a reader in
another process that reads meanwhile reads again. The place of such a name is empty until a new name is written there,
and no row refers to the new one before that. So a reader finds the name of a holder or none, and never another one.
"""

from __future__ import annotations

import math
import time
import weakref
from typing import TYPE_CHECKING, Final

from .entries import Texts, fitting
from .page import HOLDERS, LABELS, TEXT_DOUBLES, TEXTS_PER_PAGE

if TYPE_CHECKING:
    from .pool_block import Pages


_MOST_BYTES: Final = 8 * TEXT_DOUBLES
_REPLACEMENT: Final = "\ufffd"


# Between two times at which names make room: each lets a reader read again.
_SECONDS: Final = 1.0


class Name:
    """The name of a thread or task that has a number, as long as a holder keeps it."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class _Texts:
    """Mutable state: the number of each text, the pages that get them, and whether a thread adds one.

    Of names also the objects that are kept, the numbers that are free again, and when that was last looked for.
    """

    __slots__ = ("free", "is_adding", "looked", "names", "numbers", "pages")

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, int]] = {HOLDERS: {}, LABELS: {}}
        # References without callbacks, which would run where a row gets another holder, between two stores.
        self.names: dict[int, weakref.ref[Name]] = {}
        self.free: list[int] = []
        self.looked = -math.inf
        self.pages: weakref.WeakSet[Pages] = weakref.WeakSet()
        # No lock: the others do not wait, because they check a connection out, and a time limit that strikes just after
        # a lock was acquired would leave it so.
        self.is_adding = False

    def add(self, purpose: int, text: str) -> int:
        """Return the number of a new text; 0 if another thread adds one now."""
        numbers, is_ours = self.numbers[purpose], False
        try:
            # Only one thread can add. A debugger can switch threads between two lines.
            # straight line
            if not self.is_adding: self.is_adding = is_ours = True  # fmt: skip # noqa: E701
            # end of straight line
            if not is_ours:
                return 0
            number = numbers.setdefault(text, len(numbers) + 1)
            self.write()
            return number
        finally:
            if is_ours:
                self.is_adding = False

    def name(self, text: str) -> Name | None:
        """Return the name of a thread or task; None if there is no room, or if another thread adds one now."""
        numbers, is_ours = self.numbers[HOLDERS], False
        try:
            # Only one thread can add. A debugger can switch threads between two lines.
            # straight line
            if not self.is_adding: self.is_adding = is_ours = True  # fmt: skip # noqa: E701
            # end of straight line
            if not is_ours:
                return None
            number = numbers.get(text, 0) or self._new(text)
            if not number:
                return None
            name = self.kept(number)
            if name is None:
                name = Name(number)
                self.names[number] = weakref.ref(name)
            return name
        finally:
            if is_ours:
                self.is_adding = False

    def kept(self, number: int) -> Name | None:
        """Return the name that has this number, if a holder keeps it."""
        reference = self.names.get(number)
        return None if reference is None else reference()

    def _new(self, text: str) -> int:
        """Give a name a number; return 0 if there is none."""
        numbers = self.numbers[HOLDERS]
        if not self.free and len(numbers) >= TEXTS_PER_PAGE:
            self._make_room()
        if not self.free:
            if len(numbers) >= TEXTS_PER_PAGE:
                return 0
            numbers[text] = number = len(numbers) + 1
            self.write()
            return number
        number = self.free[-1]
        for pages in list(self.pages):
            pages.replace_texts(HOLDERS, {number: text})
        # straight line: the number belongs to one of both
        del self.free[-1]
        numbers[text] = number
        # end of straight line
        self.write()  # into pages that do not have the place yet
        return number

    def _free(self, text: str, number: list[int]) -> None:
        numbers = self.numbers[HOLDERS]
        # straight line: as above
        del numbers[text]
        self.free += number
        # end of straight line

    def _make_room(self) -> None:
        """Free the numbers of the names that no holder keeps."""
        now = time.monotonic()
        if now - self.looked < _SECONDS:
            return
        self.looked = now
        numbers = self.numbers[HOLDERS]
        unused = {number: text for text, number in list(numbers.items()) if self.kept(number) is None}
        for pages in list(self.pages):
            with pages.changing():
                pages.replace_texts(HOLDERS, dict.fromkeys(unused, ""))
        for number, text in unused.items():
            self._free(text, [number])

    def write(self) -> None:
        """Write what is not written yet; only the thread that adds may do so."""
        known = {purpose: self.ordered(purpose) for purpose in self.numbers}
        for pages in list(self.pages):
            for purpose, texts in known.items():
                if texts:
                    pages.write_texts(purpose, texts)

    def ordered(self, purpose: int) -> list[str]:
        """Return the texts in the order of their numbers."""
        texts = {number: text for text, number in list(self.numbers[purpose].items())}
        return [texts.get(number, "") for number in range(1, max(texts, default=0) + 1)]

    def write_now(self) -> None:
        """Write what is not written yet, unless another thread adds: it writes all."""
        is_ours = False
        try:
            # straight line
            if not self.is_adding: self.is_adding = is_ours = True  # fmt: skip # noqa: E701 - as above
            # end of straight line
            if is_ours:
                self.write()
        finally:
            if is_ours:
                self.is_adding = False


_texts: Final = _Texts()


def number_of(text: str) -> int:
    """Return the number of a label, from 1; 0 if there is no room, or if another thread adds one now.

    Args:
        text: of which at most 64 bytes are kept. An empty one has the number 0.
    """
    numbers = _texts.numbers[LABELS]
    number = numbers.get(text, 0)
    if number or not text:
        return number
    # A text that is shown otherwise is looked up twice each time, and not kept as it is: it may be long.
    shown = _shown(text)
    number = numbers.get(shown, 0)
    return number if number or len(numbers) >= TEXTS_PER_PAGE else _texts.add(LABELS, shown)


def name_of(text: str) -> Name | None:
    """Return the name of a thread or task; None if there is no room, or if another thread adds one; or for no text."""
    if not text:
        return None
    numbers = _texts.numbers[HOLDERS]
    name = _texts.kept(numbers.get(text, 0))
    # While it is kept here, nobody takes its number; another name could have got the number before.
    if name is not None and numbers.get(text) == name.number:
        return name
    return _texts.name(_shown(text))


def _shown(text: str) -> str:
    """Return a text as it is shown: short, and without characters that could forge a line of a log."""
    short = text[-_MOST_BYTES - 1 :]  # first: a character is a byte at least, and the text may be very long
    printable = (
        short if short.isprintable() else "".join(one if one.isprintable() else _REPLACEMENT for one in short)
    )
    return fitting(printable, _MOST_BYTES).decode()


def own() -> Texts:
    """Return all texts of this process."""
    return Texts(_texts.ordered(HOLDERS), _texts.ordered(LABELS))


def write_into(pages: Pages) -> None:
    """Let these pages have all texts, also later ones."""
    if pages in _texts.pages:
        return
    _texts.pages.add(pages)
    _texts.write_now()


def of_this_process() -> Texts:
    """Return all texts, for a reader in this process."""
    return own()


def after_fork() -> None:
    """In a forked child: a thread of the parent may have been adding, and the pages are the parent's."""
    _texts.is_adding = False
    _texts.pages = weakref.WeakSet()
