# SPDX-License-Identifier: Apache-2.0
"""The lock around straight lines, for interpreters whose threads can interrupt them.

A *straight line* is a stretch of stores without a call or a loop, between two comments that name it. With the GIL no
other thread runs in its midst, so it needs no lock. Without the GIL, and on PyPy, one can. There each straight line
holds one lock: ``locked_source`` rewrites the modules that record, those of the hot path when a wheel for such an
interpreter is built, all others when they are loaded. With the GIL nothing is rewritten, and recording takes not one
instruction more.

A thread that holds the lock calls nothing, so it waits for nothing: no deadlock is possible, whatever a finalizer or a
signal handler of the application does. There is one lock, because much of what straight lines share does not belong to
one pool: what a thread holds, texts, pages.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .line_lock import LineLock

# If this variable of the environment is 1, straight lines are locked with the GIL, too. For tests.
SWITCH: Final = "SQLALCHEMY_POOL_EXPORTER_LOCKS"


class _Lock(RLock):  # type: ignore[misc]  # final only in the stubs
    """A lock that is acquired and released by reading an attribute.

    CPython raises a time limit of the application, and lets a signal handler run, after each call of a method, but not
    after it read an attribute. So no time limit strikes between the acquisition and the straight line, or between that
    and the code after it. One can strike while this waits for another thread; then the lock is not acquired.
    """

    __slots__ = ()

    acquired = property(RLock.acquire)
    released = property(RLock.release)


# Mutable state: the modules whose straight lines have the lock; ``locked_source`` puts its own set here.
locked: set[str] = set()


def are_interruptible() -> bool:
    """Return whether threads can interrupt a straight line."""
    if sys.implementation.name != "cpython":
        return True  # PyPy switches threads between any two bytecodes
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    # A free-threaded build has the GIL now and then: while an extension module is loaded that may need it.
    return is_enabled is not None and ("t" in getattr(sys, "abiflags", "") or not is_enabled())


def is_wanted() -> bool:
    """Return whether straight lines get the lock."""
    return are_interruptible() or os.environ.get(SWITCH) == "1"


def _make_lock() -> _Lock | LineLock:
    """Return the lock in C, if the modules that record were compiled with it, else one of Python."""
    if is_wanted():
        try:
            from .line_lock import LineLock  # noqa: PLC0415 - only a build without the GIL has it
        except ImportError:
            pass
        else:
            return LineLock()
    return _Lock()


LOCK: Final = _make_lock()


def lock() -> None:
    """Let the modules of this package that are loaded from now on lock their straight lines, if they must."""
    global locked  # noqa: PLW0603 - once, while the package is imported
    if is_wanted():
        from . import locked_source  # noqa: PLC0415 - most interpreters need no parser of Python

        locked = locked_source.install(are_compiled=not isinstance(LOCK, _Lock))


def renew() -> None:
    """In a forked child: unlock what a thread of the parent had locked, which does not exist here."""
    LOCK._at_fork_reinit()  # type: ignore[union-attr]  # noqa: SLF001 - as threading does


def are_unlocked() -> bool:
    """Return whether threads can interrupt straight lines although they must not: there is no source to rewrite."""
    return are_interruptible() and not locked
