# SPDX-License-Identifier: Apache-2.0
"""The blocks of this process: in its own memory, or in a segment file of a shared directory.

The application never depends on the directory. If the directory is missing, full, read-only or another user's, the
blocks are in memory, and a warning and the metric ``exporter_segment_shared`` say so. Each connection that the
application opens, and each scrape, tries again, once a second at most, and then a file has all that was counted. So it
is if the file is deleted while the process runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import environment

from . import fork, texts
from .identity import read
from .own_errors import Suppressing, is_own
from .pages import Pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .file import Lease
    from .pool_block import PoolBlock

# Between two attempts to make a file. One takes 5 ms if all files are taken.
_HEAL_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 1.0  # of a scrape, for another thread that makes a file
_logger = logging.getLogger("sqlalchemy_pool_exporter")


class BlockStore:
    """The blocks of this process for one directory, or for memory.

    Mutable state: the lease of the file, whether the log has a warning already, whether a file that is missing is made
    now and when it may be made again, and the pages in memory.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        group_readable: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self._group_readable = group_readable
        self._lease: Lease | None = None
        self._has_warned = False
        self._clock = clock
        self._healing = threading.RLock()
        self._is_healing = False
        self._heals_from = 0.0
        self._memory: Pages | None = None
        self._take_lease()

    def shares(self, block: memoryview[float]) -> bool | None:
        """Return whether a sidecar sees this block of a pool; None if no directory was asked for.

        This also makes a file that is missing. Each scrape calls it.
        """
        (is_shared,) = self.share([block])
        return is_shared

    def share(self, blocks: Sequence[memoryview[float]]) -> list[bool | None]:
        """Return ``shares()`` of several blocks, with one look at the file."""
        if self.directory is None:
            return [None] * len(blocks)
        has_file = self._has_file(wait_seconds=_WAIT_SECONDS)
        return [has_file and not isinstance(block.obj, bytearray) for block in blocks]  # of pages in memory

    def block(self, text: bytes) -> PoolBlock:
        """Return a block for a pool with this description; in memory if the file cannot be used or has no room."""
        if self._lease is not None:
            self._has_file()
            try:
                # Also of a file that was deleted and cannot be replaced now: all that it has goes on in the next one.
                return self._lease.block(text)
            except Exception as error:
                if not is_own(error):
                    raise
                name = read(text).identity.name
                self._warn(f"pool {name[:40]!r}, and others for which there is no room, are", error)
        if self._memory is None:
            self._memory = Pages()
        return self._memory.pool(text)

    def pages(self) -> Iterator[Pages]:
        """Yield the pages of the file and those in memory."""
        if self._lease is not None:
            yield self._lease.pages
        if self._memory is not None:
            yield self._memory

    def unshared_pages(self) -> Iterator[Pages]:
        """Yield the pages that no other process sees."""
        if self._lease is not None and not self._has_file(wait_seconds=_WAIT_SECONDS):
            yield self._lease.pages
        if self._memory is not None:
            yield self._memory

    def after_fork(self) -> None:
        """In a forked child: close the parent's file and lease another one."""
        if self._lease is not None:
            self._lease.leave()
            self._lease = None
        self._healing = threading.RLock()  # a thread of the parent may have held the old one
        self._is_healing = False
        self._heals_from = 0.0
        self._memory = None
        self._take_lease()

    def _take_lease(self) -> None:
        if self.directory is None:
            return
        try:
            # Imported only when needed, because not every system has the locks that it uses.
            from .file import Lease  # noqa: PLC0415
        except ImportError as error:
            self._warn("pools of this process are", error)
            return
        try:
            self._lease = Lease(self.directory, group_readable=self._group_readable)
        except Exception as error:
            if not is_own(error):
                raise
            self._warn("pools of this process are", error)
            self._heals_from = self._clock() + _HEAL_SECONDS
            with Suppressing(Exception):
                self._lease = Lease(self.directory, group_readable=self._group_readable, has_file=False)

    def check(self) -> None:
        """Make the file if it is missing. Each new connection calls this; a look at the file takes 5 µs."""
        if self._lease is not None:
            self._has_file()

    def _has_file(self, *, wait_seconds: float = 0.0) -> bool:
        """Return whether the file is in the directory; if it is missing, make it.

        Args:
            wait_seconds: how long to wait for another thread that makes it. 0 for a thread of the application that
                opens a connection.
        """
        lease = self._lease
        if lease is None:
            return False
        try:
            # Without the lock: a scrape must not take a file for missing because another thread looks at it, too.
            if lease.is_there:
                return True
            return self._makes_file(lease, wait_seconds)
        except Exception as error:
            if not is_own(error):
                raise
            self._warn("pools of this process are", error)
            return False

    def _makes_file(self, lease: Lease, wait_seconds: float) -> bool:
        lock = self._healing
        # The lock is taken within the block, and no call comes before its release: a time limit that strikes after a
        # call would leave it locked, and no thread could ever make the file.
        try:
            if not lock.acquire(timeout=wait_seconds):
                return False
            if (
                self._is_healing
            ):  # this thread is at it, and the garbage collector runs a finalizer in the midst
                return False
            self._is_healing = True
            try:
                return lease.is_there or self._heal(lease)
            finally:
                self._is_healing = False
        finally:
            try:  # noqa: SIM105 - suppress() is a call
                lock.release()
            except RuntimeError:  # another thread has it
                pass

    def _heal(self, lease: Lease) -> bool:
        now = self._clock()
        if now < self._heals_from:
            return False
        self._heals_from = now + _HEAL_SECONDS
        before, had_file = lease.path, lease.had_file
        try:
            lease.heal()
        except FileNotFoundError:
            # The new file was deleted at once: the next connection makes another one.
            if lease.directory.is_dir():
                self._heals_from = 0.0
            raise
        self._heals_from = 0.0
        if had_file:
            self._log("%s was deleted, or its lock was closed; the counts go on in %s", before, lease.path)
        else:
            self._log("the directory can be used now; all that this process counted is in %s", lease.path)
        return True

    def _warn(self, which: str, why: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._log("%s invisible to a sidecar now: %s", which, why)

    @staticmethod
    def _log(message: str, *arguments: object) -> None:
        fork.without_locks_of_the_parent(_logger.warning, message, *arguments)


# Mutable state: one store for each directory.
_by_directory: dict[Path, BlockStore] = {}


def store_in(
    directory: str | os.PathLike[str] | None, memory: BlockStore, *, group_readable: bool | None = None
) -> BlockStore:
    """Return the store of this process for a directory: the argument, else the environment's, else ``memory``."""
    path = chosen_directory(directory)
    if path is None:
        return memory
    if group_readable is None:
        group_readable = environment.is_on(environment.GROUP_READABLE)
    if path not in _by_directory:
        _by_directory[path] = BlockStore(path, group_readable=group_readable)
    return _by_directory[path]


def chosen_directory(directory: str | os.PathLike[str] | None) -> Path | None:
    """Return the directory that was asked for: the argument, or else the directory of the environment, or else None."""
    given = directory if directory is not None else os.environ.get(environment.DIRECTORY) or None
    return None if given is None else _resolved(Path(given))


def _resolved(path: Path) -> Path:
    # Resolved, so that two paths to one directory share a lease. If that fails, the lease will report the reason.
    with Suppressing(OSError, RuntimeError):
        return path.resolve()
    return path


def after_fork() -> None:
    """In a forked child: lease new files."""
    texts.after_fork()
    for store in _by_directory.values():
        store.after_fork()
