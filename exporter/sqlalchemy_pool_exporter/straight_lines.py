# SPDX-License-Identifier: Apache-2.0
"""The lock around straight lines, for interpreters whose threads can interrupt them.

A *straight line* is a stretch of stores without a call or a loop, between two comments that name it. With the GIL no
other thread runs in its midst, so it needs no lock. Without the GIL, and on PyPy, one can. There ``locked_source``
rewrites the modules that record, when they are loaded, so that each straight line holds one lock. With the GIL nothing
is rewritten, and recording takes not one instruction more.

A thread that holds the lock calls nothing, so it waits for nothing: no deadlock is possible, whatever a finalizer or a
signal handler of the application does. There is one lock, because much of what straight lines share does not belong to
one pool: what a thread holds, texts, pages.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock
from typing import Final

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


LOCK: Final = _Lock()

# Mutable state: the modules that were rewritten; ``locked_source`` puts its own set here.
rewritten: set[str] = set()


def are_interruptible() -> bool:
    """Return whether threads can interrupt a straight line."""
    if sys.implementation.name != "cpython":
        return True  # PyPy switches threads between any two bytecodes
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    # A free-threaded build has the GIL now and then: while an extension module is loaded that may need it.
    return is_enabled is not None and ("t" in getattr(sys, "abiflags", "") or not is_enabled())


def lock() -> None:
    """Let the modules of this package that are loaded from now on lock their straight lines, if they must."""
    global rewritten  # noqa: PLW0603 - once, while the package is imported
    if are_interruptible() or os.environ.get(SWITCH) == "1":
        from . import locked_source  # noqa: PLC0415 - most interpreters need no parser of Python

        rewritten = locked_source.install()


def renew() -> None:
    """In a forked child: unlock what a thread of the parent had locked, which does not exist here."""
    LOCK._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as threading does


def are_unlocked() -> bool:
    """Return whether threads can interrupt straight lines although they must not: there is no source to rewrite."""
    return are_interruptible() and not rewritten
