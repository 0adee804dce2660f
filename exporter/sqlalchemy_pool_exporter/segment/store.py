# SPDX-License-Identifier: Apache-2.0
"""Where this process keeps its blocks: in its own memory, or in a file of a shared directory.

The application never depends on the directory. If it is missing, full, read-only or somebody else's, the blocks are in
memory, one warning says so, and a metric does as long as it lasts: until the next start.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from . import block as segment

if TYPE_CHECKING:
    from .file import Lease

DIRECTORY_VARIABLE: Final = "SQLALCHEMY_POOL_EXPORTER_DIR"
GROUP_VARIABLE: Final = "SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class Segments:
    """The blocks of one process; with a directory, those in its file there."""

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

        Asked at each scrape, and so, beside a new pool, the moment at which it is noticed that the file was deleted.
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
        return segment.allocate(rows)

    def give_back(self, name: str) -> None:
        """Let go of the block of a pool that is not instrumented any more."""
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
            # Not before it is asked for: not every system has its locks.
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


# The mutable state: one object for each directory, and the one without.
_by_directory: dict[Path | None, Segments] = {}


def segments_in(directory: str | os.PathLike[str] | None, *, group_readable: bool | None = None) -> Segments:
    """Return this process's segments in a directory; None means what the environment says, or memory."""
    given = directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE) or None
    if group_readable is None:
        group_readable = os.environ.get(GROUP_VARIABLE, "").lower() in {"1", "true", "yes", "on"}
    path = None if given is None else _resolved(Path(given))
    if path not in _by_directory:
        _by_directory[path] = Segments(path, group_readable=group_readable)
    return _by_directory[path]


def _resolved(path: Path) -> Path:
    # One lease, by whatever name the directory is called. If that cannot be told, the lease will say what is wrong.
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve()
    return path


def after_fork() -> None:
    """Give a forked child files of its own."""
    for segments in _by_directory.values():
        segments.after_fork()
