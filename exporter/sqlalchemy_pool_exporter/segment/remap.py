# SPDX-License-Identifier: Apache-2.0
"""Puts another file under memory that is in use, at the address where it is.

Everything that writes a segment, the hot path above all, refers to its memory. If the file of that memory is deleted,
the memory is mapped to a new file instead of giving each of these another one. So none of them notices.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAP_FIXED: Final = 0x10
_WORD: Final = 8


def move(
    memory: Sequence[memoryview], old: int | None, new: int, *, used: int, counts: Callable[[int], bool]
) -> None:
    """Map memory to another file, with its contents.

    Args:
        memory: mapped from the old file, one part after another.
        old: a descriptor of the old file; None if there is none.
        new: a descriptor of the new file, which is as long, and has at least ``used`` bytes on its disk.
        used: how many bytes of the file are in use.
        counts: whether the word at an offset in the file, in bytes, is a double that only grows.

    Raises:
        OSError: the file cannot be written or mapped.
    """
    begin = 0
    for part in memory:
        copied = bytes(part[: max(used - begin, 0)])
        written = 0
        while written < len(copied):
            written += os.pwrite(new, copied[written:], begin + written)
        _map(part, new, begin)
        if old is not None:
            # Other threads may have stored between the copy and the mapping.
            _catch_up(part, begin, copied, os.pread(old, len(copied), begin), counts)
        begin += len(part)


def _map(memory: memoryview, descriptor: int, begin: int) -> None:
    # PyDLL keeps the GIL, so no thread of Python stores meanwhile.
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
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    found = c_mmap(address, len(memory), protection, mmap.MAP_SHARED | _MAP_FIXED, descriptor, begin)
    if found != address:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _catch_up(
    memory: memoryview, begin: int, copied: bytes, last: bytes, counts: Callable[[int], bool]
) -> None:
    """Store what the old file got after it was copied."""
    if copied == last:
        return
    for at in range(0, len(last) - len(last) % _WORD, _WORD):
        before, after = copied[at : at + _WORD], last[at : at + _WORD]
        if before == after:
            continue
        word = memory[at : at + _WORD]
        if counts(begin + at):
            word.cast("d")[0] += struct.unpack("=d", after)[0] - struct.unpack("=d", before)[0]
        elif word == before:  # else a later store is in the new file already
            word[:] = after
