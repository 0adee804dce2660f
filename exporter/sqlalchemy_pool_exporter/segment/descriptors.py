# SPDX-License-Identifier: Apache-2.0
"""Descriptors that stay what they are, whatever a process does with its standard streams."""

from __future__ import annotations

import os
from typing import Final

FIRST: Final = 3  # after the three standard streams


def apart(descriptor: int) -> int:
    """Return a descriptor of the same open file that is none of the standard streams, and close the given one if it is.

    A process can start without its standard streams, and then its next files get their numbers. A daemon opens others
    in their place, and so does uWSGI's spooler; a lock or a socket with such a number would be closed by that.

    Raises:
        OSError: the process has no descriptor left; the given one is closed.
    """
    if descriptor >= FIRST:
        return descriptor
    # Imported only when needed, because not every system has it.
    import fcntl  # noqa: PLC0415

    try:
        return int(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST))
    finally:
        os.close(descriptor)
