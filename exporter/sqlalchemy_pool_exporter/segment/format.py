# SPDX-License-Identifier: Apache-2.0
"""The layout of a segment: the file with the blocks of one process.

::

    0     magic, layout version, fields per block, bytes in use, number of holders so far, identity, has forked
    64    facts about the process that writes the file, as JSON
    4096  blocks, one after another: length in bytes, rows, description of the pool (JSON), doubles

The writer can be killed between any two stores, and a reader can read at any time. So a file is valid only once it has
its magic, and a block only once the bytes in use include it. Each of these is one aligned store, made last.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import FIELDS, length

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUT_VERSION: Final = 1
MAGIC: Final = b"SAPOOLEX"
HEADER: Final = struct.Struct("=8sIIQQ16sQ")
MAGIC_WORD, USED_WORD, HOLDERS_WORD, FORKED_WORD = (
    0,
    2,
    3,
    6,
)  # indexes into the header, in words of eight bytes
FACTS_AT: Final = 64
HEADER_BYTES: Final = 4096
FILE_BYTES: Final = 64 * 2**20  # of address space; the disk only holds the part in use
FILES: Final = 1024
BLOCK_HEADER: Final = struct.Struct("=QQ")
TEXT_AT: Final = 16
DOUBLES_AT: Final = 1024
TEXT_BYTES: Final = DOUBLES_AT - TEXT_AT
# Possible lengths of a file whose writer was killed before it wrote the magic.
_UNFINISHED: Final = (0, HEADER_BYTES, FILE_BYTES)


class Header(NamedTuple):
    """The header of a file."""

    magic: bytes
    layout: int
    fields: int
    used: int
    holders: int
    identity: bytes
    has_forked: int  # 1 if the process that writes the file has forked another one

    @classmethod
    def read(cls, descriptor: int) -> Header | None:
        """Return the header of a file, or None if it is too short for one."""
        data = os.pread(descriptor, HEADER.size, 0)
        return cls._make(HEADER.unpack(data)) if len(data) == HEADER.size else None

    @property
    def is_known(self) -> bool:
        """Whether this version of the package can read the file."""
        return (self.magic, self.layout, self.fields) == (MAGIC, LAYOUT_VERSION, FIELDS)


def file_name(number: int) -> str:
    """Return the name of the file with this number."""
    return f"worker-{number:03d}"


def is_unfinished(header: Header | None, size: int) -> bool:
    """Return whether a file is still being made, or its writer was killed while making it."""
    return size in _UNFINISHED and (header is None or not any(header.magic))


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


def block_bytes(rows: int) -> int:
    """Return how many bytes of a file a block with ``rows`` connection rows takes."""
    return DOUBLES_AT + 8 * length(rows)


def blocks_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offset in bytes and the number of connection rows of each block.

    Args:
        data: the part of the file that is in use.

    Raises:
        SegmentError: a block has an impossible length.
    """
    at = HEADER_BYTES
    while at < len(data):
        whole, rows = BLOCK_HEADER.unpack_from(data, at) if at + DOUBLES_AT <= len(data) else (0, 0)
        if whole != block_bytes(rows) or at + whole > len(data):
            message = f"the block at byte {at} has an impossible length"
            raise SegmentError(message)
        yield at, rows
        at += whole
