# SPDX-License-Identifier: Apache-2.0
"""Puts another file under memory that is in use, at the address where it is.

Everything that writes a segment, the hot path above all, refers to its memory. If the file of that memory is deleted,
the memory is mapped to a new file instead of giving each of these another one. So none of them notices.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAP_FIXED: Final = 0x10


def move(memory: Sequence[memoryview], new: int, *, used: int) -> None:
    """Map memory to another file, with its contents.

    Args:
        memory: mapped from the old file, one part after another.
        new: a descriptor of the new file, which is as long and is allocated.
        used: how many bytes of the file are in use.

    Raises:
        OSError: the file cannot be mapped.
    """
    # PyDLL keeps the GIL.
    c_mmap = ctypes.PyDLL(None, use_errno=True).mmap
    c_mmap.restype = ctypes.c_void_p
    c_mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    protection, shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
    begin = 0
    for part in memory:
        size = len(part)
        end = min(size, max(used - begin, 0))
        window = memoryview(mmap.mmap(new, size, offset=begin))
        source, target = part[:end], window[:end]
        address = ctypes.addressof(ctypes.c_char.from_buffer(part))
        # Before Python 3.12 the garbage collector can run, and store, at any allocation.
        collects = gc.isenabled()
        gc.disable()
        try:
            # straight line: what another thread stored in between would be lost. A call ends it, after it was made.
            target[:] = source
            found = c_mmap(address, size, protection, shared, new, begin)
            # end of straight line
        finally:
            if collects:
                gc.enable()
        if found != address:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        begin += size
