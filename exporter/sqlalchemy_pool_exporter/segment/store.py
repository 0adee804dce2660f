# SPDX-License-Identifier: Apache-2.0
"""Where this process keeps its blocks: in its own memory, or in a file of a shared directory.

The application never depends on the directory. If it is missing, full, read-only or another user's, the blocks are in
memory until the next start. One warning says so, and a metric as long as it lasts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import allocate

if TYPE_CHECKING:
    from .file import Lease

DIRECTORY_VARIABLE: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
GROUP_VARIABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class BlockStore:
    """The blocks of this process; with a directory, those in its file there.

    Mutable state: the lease of the file, and whether it still has all blocks.
    """

    def __init__(self, directory: Path | None = None, *, group_readable: bool = False) -> None:
        self.directory = directory
        self._group_readable = group_readable
        self._lease: Lease | None = None
        self._has_warned = False
        self._is_whole = True
        self._take_lease()

    @property
    def is_shared(self) -> bool | None:
        """Whether a sidecar sees every block; None where no directory was asked for.

        Each scrape asks this, so a scrape or a new pool is when a deleted file is noticed.
        """
        if self.directory is None or self._lease is None:
            return None if self.directory is None else False
        try:
            self._check(self._lease)
        except SegmentError as error:
            self._lose(error)
        return self._is_whole

    def block(self, name: str, info: dict[str, str], rows: int) -> memoryview[float]:
        """Return a block for a pool. Never raises on account of the directory."""
        if self._lease is not None:
            try:
                self._check(self._lease)
                return self._lease.block(name, info, rows)
            except Exception as error:  # noqa: BLE001 - whatever is wrong there, the application goes on
                self._lose(error)
        return allocate(rows)

    def give_back(self, name: str) -> None:
        """Free the block of a pool that is not instrumented any more."""
        if self._lease is not None:
            self._lease.give_back(name)

    def after_fork(self) -> None:
        """In a forked child: leave the parent's file and take one of its own."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        self._is_whole = True
        self._take_lease()

    def _take_lease(self) -> None:
        if self.directory is None:
            return
        try:
            # Imported only when it is needed: not every system has the locks it uses.
            from .file import Lease  # noqa: PLC0415

            self._lease = Lease(self.directory, group_readable=self._group_readable)
        except Exception as error:  # noqa: BLE001 - whatever is wrong there, the application goes on
            self._warn(error)

    @staticmethod
    def _check(lease: Lease) -> None:
        if not lease.is_there:
            raise SegmentError(f"{str(lease.path)!r} was deleted, or its lock was closed")

    def _lose(self, error: Exception) -> None:
        self._is_whole = False
        self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "pools of this process are invisible to a sidecar until it starts again: %s", error
            )


# Mutable state: one store for each directory, and one (None) in memory.
_by_directory: dict[Path | None, BlockStore] = {}


def store_in(directory: str | os.PathLike[str] | None, *, group_readable: bool | None = None) -> BlockStore:
    """Return this process's store in a directory. None means the one that the environment names, or memory."""
    given = directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE) or None
    if group_readable is None:
        group_readable = os.environ.get(GROUP_VARIABLE, "").lower() in {"1", "true", "yes", "on"}
    path = None if given is None else _resolved(Path(given))
    if path not in _by_directory:
        _by_directory[path] = BlockStore(path, group_readable=group_readable)
    return _by_directory[path]


def _resolved(path: Path) -> Path:
    # One lease, whichever path names the directory. If the path cannot be resolved, the lease reports the reason.
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve()
    return path


def after_fork() -> None:
    """Give a forked child files of its own."""
    for store in _by_directory.values():
        store.after_fork()
