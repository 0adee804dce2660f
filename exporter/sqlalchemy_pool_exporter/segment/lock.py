# SPDX-License-Identifier: Apache-2.0
"""The lock by which a process holds its segment file.

It is an open-file-description lock. The kernel frees it when the holder dies, even by SIGKILL, and a reader can test it
without taking it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from .own_errors import is_own

# struct flock. Its last member, the process id, must be 0 for these locks.
_FLOCK: Final = struct.Struct("@hhqqi4x")
_WHOLE_FILE: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def is_held(descriptor: int) -> bool:
    """Return whether a process holds the lock of a file; do not take it."""
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE))[0]
    return kind != fcntl.F_UNLCK


def take(descriptor: int) -> bool:
    """Take the lock of a file and return whether it was free."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        if not is_own(error):
            raise
        return False
    return True
