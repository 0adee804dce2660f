# SPDX-License-Identifier: Apache-2.0
"""What is known of the places in codes that checkouts came through."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType

    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    Shortcut = tuple[SiteEntry, CodeType | None]

_MOST: Final = 4096
_MOST_DEPTHS: Final = 4
# The depth in the stack of what calls ``Engine.connect()``. A listener of the application can check out below the same
# place, through the same function and as deep; then it does so itself, and not the function that did before.
WITNESS: Final = 5


class Places:
    """The places in codes, each by its address: ``id(code) + f_lasti``.

    A code contains its instructions, so no other code has that address. (The hash of a code would be computed from all
    its instructions.) What is known of a code is forgotten when it is freed: an application can make and drop codes for
    ever.

    The mutable state, which the hot path reads itself: ``entries`` has the site at a place, and ``silent`` the places
    that say nothing. ``shortcuts`` has the same sites by the depth in the stack of the function that the application
    called there, by that function's code, and by the place; each with the code that called ``Engine.connect()``, or
    None if that is the place itself.
    """

    __slots__ = ("_references", "entries", "shortcuts", "silent")

    def __init__(self) -> None:
        self.entries: dict[int, SiteEntry] = {}
        self.silent: set[int] = set()
        self.shortcuts: list[tuple[int, dict[int, dict[int, Shortcut]]]] = []
        self._references: dict[int, weakref.ref[CodeType]] = {}

    def clear(self) -> None:
        """Forget all."""
        self.entries.clear()
        self.silent.clear()
        self.shortcuts.clear()
        self._references.clear()

    def remember(self, code: CodeType, place: int, entry: SiteEntry | None) -> None:
        """Note the site at a place in a code; None if the place says nothing."""
        self._watch(place, code)
        if entry is None:
            self.silent.add(place)
        else:
            self.entries[place] = entry

    def learn(self, depth: int, callee: CodeType, place: int, shortcut: Shortcut) -> None:
        """Let the next checkout from the same place, through the same function and as deep, find its site at once.

        Only if that function is SQLAlchemy's, or calls the witness itself. One of another library can call now a
        function of its own and now one of the application, and the same places would be as deep.

        To look at each frame of a stack takes long, since the interpreter makes an object for each: through a session
        that was more than twice the cost of all else that a site needs.
        """
        self._watch(id(callee), callee)
        by_callee = dict(self.shortcuts).get(depth)
        if by_callee is None:
            by_callee = {}
            self.shortcuts[:] = [(depth, by_callee), *self.shortcuts[: _MOST_DEPTHS - 1]]
        by_callee.setdefault(id(callee), {})[place] = shortcut

    def _watch(self, address: int, code: CodeType) -> None:
        if len(self._references) >= _MOST:
            self.clear()
        forget = partial(_forget, address, self._references, self.entries, self.silent, self.shortcuts)
        self._references[address] = weakref.ref(code, forget)


def _forget(
    address: int,
    references: dict[int, weakref.ref[CodeType]],
    entries: dict[int, SiteEntry],
    silent: set[int],
    shortcuts: list[tuple[int, dict[int, dict[int, Shortcut]]]],
    _gone: object,
) -> None:
    """Forget what is known of an address in a code that is freed: another code can get it."""
    references.pop(address, None)
    entries.pop(address, None)
    silent.discard(address)
    for _, by_callee in shortcuts.copy():
        by_callee.pop(address, None)
        for places in list(by_callee.values()):
            places.pop(address, None)
