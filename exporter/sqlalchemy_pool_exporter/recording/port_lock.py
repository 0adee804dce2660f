# SPDX-License-Identifier: Apache-2.0
"""The lock of an address: which process of an application serves there.

It is a file in the directory that all processes of the application share. If the lock is held, one of them serves, and
the others stand by. If it is free but the port is taken, another program has the port.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment.descriptors import apart
from sqlalchemy_pool_exporter.segment.own_errors import Suppressing, is_own

from .at_fork import close_in_children

if TYPE_CHECKING:
    from pathlib import Path


class LockError(OSError):
    """The lock cannot be used: the directory is missing or not writable, or the system has no such locks."""


class PortLock:
    """The lock of one address. Mutable state: the descriptor that holds it, or None.

    Args:
        directory: the directory that the processes share.
        host: the numeric address.
        port: the port.
    """

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self.path = directory / f"endpoint-{host}-{port}"
        self._descriptor: int | None = None
        close_in_children(self)

    @property
    def is_held_here(self) -> bool:
        """Whether this object holds the lock of the file that is at its path now."""
        if self._descriptor is None:
            return False
        with Suppressing(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self.path.lstat())
        return False

    def take(self) -> bool:
        """Take the lock, and return whether this object holds it. It takes a new file if the old one was deleted.

        Raises:
            LockError: the file cannot be made or locked.
        """
        if self.is_held_here:
            return True
        try:
            return self._take()
        except (OSError, ImportError, AttributeError) as error:
            if not is_own(error) and not isinstance(error, ImportError):
                raise
            raise LockError(f"no lock {str(self.path)!r}: {error}") from error

    def _take(self) -> bool:
        # Imported only when needed, because not every system has this kind of lock.
        from sqlalchemy_pool_exporter.segment import lock  # noqa: PLC0415

        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = apart(os.open(self.path, flags, 0o600))
        if not lock.take(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        # The file may have been deleted and made anew before it was locked.
        return self.is_held_here

    def renew(self) -> None:
        """Take the lock again if its file was deleted, so that the other processes go on standing by."""
        if not self.is_held_here:
            with contextlib.suppress(OSError):
                self.take()

    def close(self) -> None:
        """Close the descriptor; that frees the lock, except in a forked child."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a daemon may have closed all descriptors
                os.close(descriptor)
