# SPDX-License-Identifier: Apache-2.0
"""A method of a dialect that is wrapped, because neither an event nor a method of the pool shows what it does.

There is one tap for each method of a dialect, because pools can share a dialect: those before and after ``dispose()``
do.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

if TYPE_CHECKING:
    from .recorder import Recorder


class DialectTap:
    """Wraps a method of a dialect. Mutable state: the recorders of the pools that use it."""

    METHODS: ClassVar[tuple[str, ...]]  # the first one that the dialect has is wrapped

    def __init__(self, dialect: Any, name: str) -> None:
        self._name = name
        self._original = getattr(dialect, name)
        self._was_set = name in dialect.__dict__
        # In a list of one, which the hook keeps: an attribute of this object would be looked up at each call.
        self.current: Final[list[list[weakref.ref[Recorder]]]] = [[]]
        hook: Any = self.make_hook(self._original)
        self.hook = functools.update_wrapper(hook, self._original)
        hook.tap = self

    def make_hook(self, original: Any) -> Any:
        """Return the function that calls the method, and records what it does."""
        raise NotImplementedError

    @property
    def recorders(self) -> list[weakref.ref[Recorder]]:
        """The recorders now; the list is never changed, but replaced."""
        return self.current[0]

    @classmethod
    def attach(cls, dialect: Any, recorder: Recorder) -> None:
        """Record for the pool of ``recorder``; wrap the method if no other pool has, and if the dialect has it."""
        name = next((name for name in cls.METHODS if hasattr(dialect, name)), None)
        if name is None:  # the stub of a pool without an engine
            return
        tap = cls._found(dialect, name)
        if tap is None:
            tap = cls(dialect, name)
            setattr(dialect, name, tap.hook)
        tap.add(recorder)

    @classmethod
    def detach(cls, dialect: Any, recorder: Recorder) -> None:
        """Stop recording for this pool; after the last pool, restore the dialect."""
        for name in cls.METHODS:
            tap = cls._found(dialect, name)
            if tap is not None and not tap.remove(recorder):
                tap.restore(dialect)

    @classmethod
    def _found(cls, dialect: Any, name: str) -> Self | None:
        tap = getattr(getattr(dialect, "__dict__", {}).get(name), "tap", None)
        return tap if isinstance(tap, cls) else None

    def add(self, recorder: Recorder) -> None:
        """Record for a pool."""
        self.remove(recorder)
        # First: those of pools that were replaced are hardly used.
        self.current[0] = [weakref.ref(recorder), *self.recorders]

    def remove(self, recorder: Recorder) -> bool:
        """Forget a pool, and pools that were garbage-collected; return whether any pool is left."""
        self.current[0] = [other for other in self.recorders if other() not in {None, recorder}]
        return bool(self.recorders)

    def restore(self, dialect: Any) -> None:
        """Put the dialect's own method back."""
        if self._was_set:
            setattr(dialect, self._name, self._original)
        else:
            delattr(dialect, self._name)
