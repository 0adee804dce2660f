# SPDX-License-Identifier: Apache-2.0
"""Where checkouts come from: the site of each in the application."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from .frames import Kind, kind_of, stack, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, FrameType

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock, SiteEntry

try:
    from greenlet import getcurrent as _current_greenlet
except ImportError:  # pragma: no cover - SQLAlchemy 2.1 without the asyncio extra
    _current_greenlet = None

# If none of so many checkouts comes from the application's own code, the application is installed like a library.
_ENOUGH: Final = 64
_MOST_KNOWN: Final = 4096


class HasStorage(Protocol):
    """The part of a recorder that is needed here."""

    @property
    def storage(self) -> PoolBlock:
        """Where the recorder stores; another one after a fork."""


class Origins:
    """Finds the sites of one pool's checkouts.

    Mutable state: what is known of the stack. ``skipped`` has the files whose frames say nothing, ``_libraries`` those
    of them that are libraries. ``_known`` has the entry of each place in a code, or None if that code says nothing.
    """

    __slots__ = (
        "_by_text",
        "_has_application",
        "_known",
        "_libraries",
        "_misses",
        "_recorder",
        "_skipped",
        "find",
        "prefixes",
    )

    def __init__(self, recorder: HasStorage, prefixes: Sequence[str] = ()) -> None:
        """Know nothing yet.

        Args:
            recorder: the recorder of the pool.
            prefixes: of the modules that are the application's, if it named any.
        """
        self._recorder = recorder
        self.prefixes = tuple(prefixes)
        self._skipped: set[str] = set()
        self._libraries: set[str] = set()
        self._misses = 0
        self._has_application = False
        self._by_text: dict[str, SiteEntry] = {}
        # By the id() of the code and the place in it: the hash of a code is computed from all its instructions. The
        # reference removes what is known of a code that is freed: an application can make and drop codes for ever.
        self._known: dict[tuple[int, int], tuple[SiteEntry | None, weakref.ref[CodeType]]] = {}
        self.find = self.finder()

    def forget(self) -> None:
        """Forget the entries, because a new block replaces the one that they are in."""
        self._by_text.clear()
        self._known.clear()

    def finder(self, engine_connect: CodeType | None = None) -> Callable[[], SiteEntry]:
        """Return a function that returns the site of the caller of its caller. It runs at every checkout.

        Args:
            engine_connect: the code that most often calls the code that calls the pool's ``connect()``. The function
                begins above it if it is four frames above.
        """
        skipped, known, getframe, search = self._skipped, self._known, sys._getframe, self._search  # noqa: SLF001 - inspect.currentframe() has no depth
        current_greenlet = _current_greenlet

        def find() -> SiteEntry:
            # A frame that is skipped costs nothing here.
            try:
                frame: Any = getframe(4)
                frame = frame.f_back if frame.f_code is engine_connect else getframe(2)
            except ValueError:  # the stack is not as deep
                frame = getframe(2)
            greenlet = None
            while True:
                while frame is not None:
                    code = frame.f_code
                    if code.co_filename not in skipped:
                        found = known.get((id(code), frame.f_lasti))
                        if found is None:
                            return search(getframe(2))
                        entry, _ = found
                        if entry is not None:
                            return entry
                    frame = frame.f_back
                # An asyncio engine checks out in a greenlet of its own; its caller is the frame of the parent.
                if current_greenlet is None:
                    break
                greenlet = (current_greenlet() if greenlet is None else greenlet).parent
                if greenlet is None:
                    break
                frame = greenlet.gr_frame
            return search(getframe(2))

        return find

    def _search(self, start: FrameType) -> SiteEntry:
        library = None
        for frame in stack(start):
            code = frame.f_code
            path = code.co_filename
            if path in self._skipped:
                if library is None and path in self._libraries:
                    library = frame
                continue
            known = self._known.get((id(code), frame.f_lasti))
            if known is not None:
                if known[0] is not None:
                    return known[0]
                continue
            kind = kind_of(frame, self.prefixes)
            if kind is Kind.APPLICATION:
                self._has_application = True
                return self._entry(frame)
            if kind is Kind.LIBRARY and self._libraries_count:
                return self._entry(frame)
            if path.startswith("<"):
                self._remember(frame, None)
                continue
            if kind is Kind.LIBRARY:
                self._libraries.add(path)
                library = library or frame
            self._skipped.add(path)
        return self._missed(library)

    @property
    def _libraries_count(self) -> bool:
        """Whether libraries count as the application, because it is installed like one."""
        return self._misses >= _ENOUGH and not self._has_application

    def _missed(self, library: FrameType | None) -> SiteEntry:
        """Return the entry for a stack without a frame of the application."""
        self._misses += 1
        if self._libraries_count:
            self._skipped.difference_update(self._libraries)
        return self._recorder.storage.other_sites if library is None else self._entry(library)

    def _entry(self, frame: FrameType) -> SiteEntry:
        text, storage = text_of(frame), self._recorder.storage
        entry = self._by_text.get(text)
        if entry is None:
            entry = storage.site(text)
            if entry is None:
                return storage.other_sites
            if entry.number:  # else there is no room, and texts without an entry are without number
                self._by_text[text] = entry
        self._remember(frame, entry)
        if self._recorder.storage is not storage:
            self.forget()  # the process forked meanwhile: the entry is the parent's
        return entry

    def _remember(self, frame: FrameType, entry: SiteEntry | None) -> None:
        known = self._known
        if len(known) >= _MOST_KNOWN:
            known.clear()
        key = (id(frame.f_code), frame.f_lasti)
        forget = known.pop
        known[key] = entry, weakref.ref(frame.f_code, lambda _: forget(key, None))
