# SPDX-License-Identifier: Apache-2.0
"""Where checkouts come from: the site of each in the application."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from .frames import EXCLUDED, Kind, is_of_sqlalchemy, kind_of, stack, text_of
from .places import WITNESS, Places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .places import Shortcut

try:
    from greenlet import getcurrent as _current_greenlet
except ImportError:  # pragma: no cover - SQLAlchemy 2.1 without the asyncio extra
    _current_greenlet = None

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import (
        address,
        caller_of,
        code_of,
        file_of,
        innermost,
        place_of,
    )
else:
    address = id

# Where the caller of find() and its caller are in the stack; compiled functions have no frame.
_CONNECT: Final = 1
_START: Final = 0 if cython.compiled else 2
_WITNESS: Final = WITNESS - 2 + _START
# If none of so many checkouts comes from the application's own code, the application is installed like a library.
_ENOUGH: Final = 64


class HasStorage(Protocol):
    """The part of a recorder that is needed here."""

    @property
    def storage(self) -> PoolBlock:
        """Where the recorder stores; another one after a fork."""


class Origins:
    """Finds the sites of one pool's checkouts.

    Mutable state: what is known of the stack. ``_skipped`` has the files whose frames say nothing, ``_libraries`` those
    of them that are libraries, and ``_places`` what is known of places in other files.
    """

    __slots__ = (
        "_by_text",
        "_excludes",
        "_has_application",
        "_libraries",
        "_misses",
        "_places",
        "_recorder",
        "_skipped",
        "find",
        "prefixes",
        "share",
    )

    def __init__(self, recorder: HasStorage, prefixes: Sequence[str] = (), share: float = 0.0) -> None:
        """Know nothing yet.

        Args:
            recorder: the recorder of the pool.
            prefixes: of the modules that are the application's, if it named any.
            share: of the pool's capacity that is in use when the hot path finds the site of a checkout.
        """
        self._recorder = recorder
        self.prefixes = tuple(prefixes)
        self.share = share
        self._excludes = EXCLUDED in [prefix[:1] for prefix in self.prefixes]
        self._skipped: set[str] = set()
        self._libraries: set[str] = set()
        self._misses = 0
        self._has_application = False
        self._by_text: dict[str, SiteEntry] = {}
        self._places = Places()
        self.find = self._finder()

    def forget(self) -> None:
        """Forget the entries, because a new block replaces the one that they are in."""
        self._by_text.clear()
        self._places.clear()

    def _finder(self) -> Callable[[], SiteEntry]:  # noqa: C901, PLR0915 - a call would cost
        """Return a function that returns the site of the caller of its caller. It runs at every checkout."""
        places = self._places
        skipped: set[str] = self._skipped
        entries: dict[int, SiteEntry] = places.entries
        silent: set[int] = places.silent
        shortcuts: list[Any] = places.shortcuts
        learn = places.learn
        search, getframe = self._search, sys._getframe  # noqa: SLF001 - inspect.currentframe() has no depth
        current_greenlet = _current_greenlet

        def find() -> SiteEntry:  # noqa: C901, PLR0912 - as above
            frame: Any
            callee: Any
            depth: cython.Py_ssize_t
            by_callee: dict[int, dict[int, Shortcut]]
            sites: dict[int, Shortcut] | None
            for depth, by_callee in shortcuts:
                try:
                    callee = getframe(depth)
                except ValueError:  # the stack is not as deep
                    continue
                sites = by_callee.get(address(code_of(callee) if cython.compiled else callee.f_code))
                if sites is not None:
                    frame = caller_of(callee) if cython.compiled else callee.f_back
                    if frame is None:
                        continue
                    if cython.compiled:
                        known = sites.get(place_of(frame))
                    else:
                        known = sites.get(id(frame.f_code) + frame.f_lasti)
                    if known is not None:
                        learned, witness = known
                        if witness is None or getframe(_WITNESS).f_code is witness:
                            return learned
            # None if a thread or a greenlet begins with the checkout: nothing calls it, or the parent does.
            frame = innermost() if cython.compiled else getframe(_CONNECT).f_back
            callee, depth = None, _START
            greenlet = None
            while True:
                while frame is not None:
                    if cython.compiled:
                        code = code_of(frame)
                        path = file_of(code)
                    else:
                        code = frame.f_code
                        path = code.co_filename
                    if path not in skipped:
                        place = place_of(frame) if cython.compiled else id(code) + frame.f_lasti
                        entry = entries.get(place)
                        if entry is not None:
                            if (
                                greenlet is None
                                and callee is not None
                                and (depth <= _WITNESS + 2 or is_of_sqlalchemy(callee))
                            ):
                                witness = getframe(_WITNESS).f_code if depth > _WITNESS + 1 else None
                                learn(depth - 1, callee.f_code, place, (entry, witness))
                            return entry
                        if place not in silent:
                            return search(innermost() if cython.compiled else getframe(_CONNECT).f_back)
                    callee, depth = frame, depth + 1
                    frame = caller_of(frame) if cython.compiled else frame.f_back
                # An asyncio engine checks out in a greenlet of its own; its caller is the frame of the parent.
                if current_greenlet is None:
                    break
                greenlet = (current_greenlet() if greenlet is None else greenlet).parent
                if greenlet is None:
                    break
                frame = greenlet.gr_frame
            return search(innermost() if cython.compiled else getframe(_CONNECT).f_back)

        return find

    def _search(self, start: FrameType | None) -> SiteEntry:
        library = None
        for frame in stack(start):
            code = frame.f_code
            path = code.co_filename
            if path in self._skipped:
                if library is None and path in self._libraries:
                    library = frame
                continue
            place = id(code) + frame.f_lasti
            entry = self._places.entries.get(place)
            if entry is not None:
                return entry
            if place in self._places.silent:
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
        return self._misses >= _ENOUGH and not (self._has_application or self._excludes)

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
        code = frame.f_code
        self._places.remember(code, id(code) + frame.f_lasti, entry)
