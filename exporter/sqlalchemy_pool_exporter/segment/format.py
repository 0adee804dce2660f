# SPDX-License-Identifier: Apache-2.0
"""The layout of a segment: the file with the blocks of one process.

::

    0     magic, layout version, fields per block, bytes in use, number of holders so far, identity, has forked,
          changes, drops, births, was used
    128   facts about the process that writes the file, as JSON
    8192  pages (see ``page``)

The writer can be killed between any two stores, and a reader can read at any time. So a file is valid only once it has
its magic, and a page only once it has its kind. Each of these is one aligned store, made last.

While counts move from one page to another, or a page becomes free, ``changes`` is odd, and it is larger afterwards. A
reader whose read overlapped such a change reads again.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import FIELDS, PAGE_BYTES

LAYOUT_VERSION: Final = 3
MAGIC: Final = b"SAPOOLEX"
HEADER: Final = struct.Struct("=8sIIQQ16sQQQQQ")
IDENTITY: Final = slice(32, 48)  # in the header
# Indexes into the header, in words of eight bytes.
MAGIC_WORD, USED_WORD, HOLDERS_WORD, FORKED_WORD, CHANGES_WORD, DROPS_WORD, BIRTHS_WORD = 0, 2, 3, 6, 7, 8, 9
WAS_USED_WORD: Final = 10
FACTS_AT: Final = 128
HEADER_BYTES: Final = PAGE_BYTES
# A file grows by extents: the first one, and then each time as much as there is. It takes no more than that, also
# under mlockall(), which makes the kernel allocate all that is mapped.
FIRST_EXTENT: Final = 64 * 2**10
FILE_BYTES: Final = 64 * 2**20  # at most
_SIZES: Final = [FIRST_EXTENT << doublings for doublings in range(11)]
FILES: Final = 1024


class Header(NamedTuple):
    """The header of a file."""

    magic: bytes
    layout: int
    fields: int
    used: int
    holders: int
    identity: bytes
    has_forked: int  # 1 if the process that writes the file has forked another one
    changes: int  # odd while counts move
    drops: int  # how many totals were dropped so far
    births: int  # how many pools there were so far
    was_used: int  # 1 if the process that writes the file used a pool that is gone

    @classmethod
    def read(cls, descriptor: int) -> Header | None:
        """Return the header of a file, or None if it is too short for one."""
        return cls.of(os.pread(descriptor, HEADER.size, 0))

    @classmethod
    def of(cls, data: bytes) -> Header | None:
        """Return the header at the beginning of ``data``, or None if that is too short for one."""
        return cls._make(HEADER.unpack_from(data)) if len(data) >= HEADER.size else None

    @property
    def is_known(self) -> bool:
        """Whether this version of the package can read the file."""
        return (self.magic, self.layout, self.fields) == (MAGIC, LAYOUT_VERSION, FIELDS)

    @property
    def is_possible(self) -> bool:
        """Whether the bytes in use are whole pages."""
        return HEADER_BYTES <= self.used <= FILE_BYTES and self.used % PAGE_BYTES == 0


def file_name(number: int) -> str:
    """Return the name of the file with this number."""
    return f"worker-{number:03d}"


def is_unfinished(header: Header | None, size: int) -> bool:
    """Return whether a file is still being made, or its writer was killed while making it."""
    # Some file systems allocate the first extent block by block. A file that replaces a deleted one has more extents.
    is_made_so = size % 4096 == 0 if size <= FIRST_EXTENT else size in _SIZES
    return is_made_so and (header is None or not any(header.magic))


def read_used(descriptor: int, used: int) -> bytes:
    """Return the part of a file that is in use.

    Raises:
        SegmentError: the file is shorter than ``used``.
    """
    data = os.pread(descriptor, used, 0)
    if len(data) < used:
        message = f"{len(data)} bytes where {used} are in use"
        raise SegmentError(message)
    return data
