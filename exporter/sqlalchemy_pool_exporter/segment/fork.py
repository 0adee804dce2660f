# SPDX-License-Identifier: Apache-2.0
"""Notices that this process is a forked child, also if no hook of Python ran.

uWSGI and other servers fork in C. Their children inherit the parent's mapping of its segment and would go on counting
in it. So ``mark`` is in a page that the kernel fills with zeros in every forked child (``MADV_WIPEONFORK``). Each
writer looks at the mark before it stores, and calls ``notice()`` if the mark is 0. One look takes 16 ns.

Where the kernel has no such page (before Linux 4.14), only Python's own hooks tell.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import mmap
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter import straight_lines

if TYPE_CHECKING:
    from collections.abc import Callable

_WIPE_ON_FORK: Final = 18  # MADV_WIPEONFORK of Linux; Python has no name for it
_GENERATIONS: Final = 255  # that fit into the mark's byte, without 0
# Until CPython 3.11, a thread that is about to run has the ident of the thread that starts it, and so a limit that
# PyThreadState_SetAsyncExc() sets for that one can end it before its first line. Thread.start() then waits for ever for
# that line. 1,767 of 128,603 threads ended so, and none on 3.13.
_STARTS_FOR_EVER: Final = sys.version_info < (3, 12)
_BEGINS_WITHIN: Final = 0.05  # seconds
# Since CPython 3.14, a limit can strike between the acquisition of a lock and the first line of its ``with``. If the
# lock is that of the list of threads, no thread of the application can start any more. Without the GIL 1,000 starts
# never ended; the functions of ``_thread`` take no such lock.
_LOCKS_FOR_EVER: Final = sys.version_info >= (3, 14)


def _wiped_on_fork() -> memoryview:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
            return memoryview(page)
    return memoryview(bytearray(1))


# In its only byte that is used: the generation of this process, another one than its parent's; 0 in a forked child that
# has not noticed.
mark: Final = _wiped_on_fork()
# The generation of the process that noticed last. A look costs a tenth of one at the mark, and tells a function whether
# a call that it made has noticed a fork.
generation: Final = [0]


class _Process:
    """The process that noticed last. Mutable state: its pid, and what is called in a child."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        generation[0] = mark[0] = 1
        self.ran_hooks = True  # of Python, in this process, after it was forked
        self.noticing = 0  # pid of the process that is calling the callbacks now
        # By pid: a thread of the parent may hold the parent's lock, and does not exist in the child.
        self.locks: dict[int, threading.RLock] = {}
        self.in_child: list[Callable[[], object]] = []
        self.in_worker: list[Callable[[], object]] = []


_process = _Process()


def call_in_child(callback: Callable[[], object]) -> None:
    """Call a function in each forked child of this process, before the child records anything."""
    _process.in_child.append(callback)
    if len(_process.in_child) == 1 and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_notice_by_hook)
    _chain_into_uwsgi()


def forks_workers_in_c() -> bool:
    """Return whether this process is uWSGI's before it has workers.

    It may start no thread: a worker that is forked in C while a thread has the GIL waits for the GIL for ever.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    has_ids = hasattr(uwsgi, "worker_id") and hasattr(uwsgi, "mule_id")
    return has_ids and not (uwsgi.worker_id() or uwsgi.mule_id())


def call_in_worker(callback: Callable[[], object]) -> None:
    """Call a function when a worker of uWSGI starts, or in the forked child when it notices; maybe more than once.

    Without a master, uWSGI's first process becomes its first worker, and is no child.
    """
    _process.in_worker.append(callback)
    call_in_child(callback)


def _notice_by_hook() -> None:
    notice(by_hook=True)


def notice(*, by_hook: bool = False) -> int:
    """In a forked child that has not noticed it, call the callbacks; return the mark.

    The mark that is returned is 0 only while the callbacks run, and then nothing may be stored.
    """
    pid = os.getpid()
    if mark[0] and pid == _process.pid:
        return mark[0]
    with _process.locks.setdefault(pid, threading.RLock()):
        if _process.noticing == pid or (mark[0] and pid == _process.pid):
            return mark[0]
        _process.noticing, mark[0] = pid, 0
        _process.ran_hooks = by_hook
        try:
            straight_lines.renew()
            for callback in _process.in_child:
                callback()
        finally:
            _process.noticing = 0
        # Last: if a callback was interrupted, the next writer calls it again.
        _process.pid = pid
        generation[0] = mark[0] = generation[0] % _GENERATIONS + 1
    return mark[0]


def without_locks_of_the_parent(act: Callable[..., object], *arguments: object) -> None:
    """Call a function that takes locks, such as those of ``logging``, in the midst of the application's work.

    Python's hooks renew these locks in a child. If they did not run, a thread of the parent may hold one for ever, so
    another thread waits for it.
    """
    if _process.ran_hooks:
        act(*arguments)
    else:
        _thread.start_new_thread(act, arguments)


def start_thread(act: Callable[..., object], *arguments: object, name: str) -> bool:
    """Start a daemon thread in the midst of the application's work; return False if there can be none.

    The locks of ``threading`` are as those of ``logging``, see ``without_locks_of_the_parent()``.
    """
    try:
        if not _process.ran_hooks:
            _thread.start_new_thread(act, arguments)
        elif _LOCKS_FOR_EVER:
            _thread.start_new_thread(_begin, (act, arguments, name))
        else:
            _start(threading.Thread(target=act, args=arguments, name=name, daemon=True))
    except RuntimeError:  # the system has no thread left, or the interpreter ends
        return False
    return True


def _begin(act: Callable[..., object], arguments: tuple[object, ...], name: str) -> None:
    threading.current_thread().name = name
    act(*arguments)


def _start(thread: threading.Thread) -> None:
    if _STARTS_FOR_EVER:
        with contextlib.suppress(AttributeError):  # gevent's event takes no attribute
            # What start() waits for. A limit that is set for this thread until then is lost.
            begun: Any = thread._started  # type: ignore[attr-defined] # noqa: SLF001 - 3.11 is not going to change it
            begun.wait = functools.partial(begun.wait, _BEGINS_WITHIN)
    thread.start()


def _chain_into_uwsgi() -> None:
    """Let a worker of uWSGI notice when it starts, so that it shows its capacity before its first request.

    uWSGI calls one function in each worker. ``uwsgidecorators`` puts its own there when it is imported: if that is
    later, a worker notices at its first checkout.
    """
    uwsgi = sys.modules.get("uwsgi")
    before = getattr(uwsgi, "post_fork_hook", None)
    if uwsgi is None or getattr(before, "notices_fork", False):
        return

    def post_fork_hook() -> None:
        notice()
        for callback in _process.in_worker:
            callback()
        if before is not None:
            before()

    post_fork_hook.notices_fork = True  # type: ignore[attr-defined]
    uwsgi.post_fork_hook = post_fork_hook  # type: ignore[attr-defined]
