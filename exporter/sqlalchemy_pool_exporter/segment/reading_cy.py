# SPDX-License-Identifier: Apache-2.0
"""Reads one segment file; any damage raises one error that names it.

A file is read with ``pread()`` and never mapped. If the file shrinks meanwhile, ``pread()`` returns fewer bytes, while
an access to a mapping would kill the process.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from .block import FIELDS
from .format import HEADER, IDENTITY, LAYOUT_VERSION, MAGIC, Header, is_unfinished, read_used
from .lock import is_held
from .own_errors import is_own
from .trust import is_possible
from .worker import Worker

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.segment.contents_cy import Contents
else:
    from .contents_cy import Contents

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.metrics import SegmentErrorKind

    from .trust import Trust

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

# Errors of open() for a symbolic link and for a socket.
_FOREIGN_ERRORS: Final = (errno.ELOOP, errno.ENXIO)
# A reader whose read overlapped a change reads again: at once, and then after these pauses in seconds. A writer changes
# for microseconds, unless it loses the processor meanwhile.
_PAUSES: Final = (0.0, 0.0, 0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)


class OtherError(SegmentError):
    """A file cannot be used although it is not damaged; ``kind`` says why."""

    def __init__(self, kind: SegmentErrorKind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class Remembered:
    """What a reader remembers of the files that it has read, by their identity. Mutable state: that."""

    def __init__(self) -> None:
        self.workers: dict[bytes, Worker] = {}
        self.contents: dict[bytes, Contents] = {}  # of live workers


def read(path: str, number: str, remembered: Remembered, trust: Trust) -> Worker | None:
    """Return the contents of a segment file, or None if the file was deleted or is still being made.

    Args:
        path: path of the file.
        number: number of the worker, from the name of the file.
        remembered: of earlier reads.
        trust: whose files are believed.

    Raises:
        OtherError: the file cannot be read, or is not a segment of this layout.
        SegmentError: the file is damaged.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None  # deleted since the directory was listed
    except OSError as error:
        if not is_own(error):
            raise
        kind: SegmentErrorKind = "foreign" if error.errno in _FOREIGN_ERRORS else "unreadable"
        raise OtherError(kind, error.strerror or str(error)) from error
    try:
        return _read_open(descriptor, number, remembered, trust)
    except OSError as error:
        if not is_own(error):
            raise
        raise OtherError("unreadable", error.strerror or str(error)) from error
    finally:
        os.close(descriptor)


def _read_open(  # noqa: C901 - one check after another
    descriptor: int, number: str, remembered: Remembered, trust: Trust
) -> Worker | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OtherError("foreign", "not a regular file")
    if not trust.admits(status):
        raise OtherError(
            "foreign", f"it belongs to user {status.st_uid}, and the directory allows others only"
        )
    # Read the header before the lock is tested. A process that takes the lock after the test also adds itself to
    # ``holders`` after this read. So the next read sees another count and does not trust what this one remembers.
    said = os.pread(descriptor, HEADER.size, 0)
    contents: Contents | None = remembered.contents.get(said[IDENTITY])
    header = _header(said, contents, status.st_size)
    if header is None:
        return None
    if status.st_size < header.used:
        status = os.fstat(descriptor)  # it may have grown before its header was read
    if status.st_size < header.used:
        raise SegmentError(f"{status.st_size} bytes where {header.used} are in use")
    if not is_possible(status, header.used):
        raise SegmentError(f"{status.st_blocks} blocks on the disk where {header.used} bytes are in use")
    is_live = is_held(descriptor)
    last = remembered.workers.get(header.identity)
    if last is not None and not last.is_live and (last.number, last.holders) == (number, header.holders):
        # Nothing was written since then. At most, a new holder has the lock and is about to take over.
        return last
    data, is_whole = _read_pages(descriptor, header, said, is_live=is_live)
    if not is_whole and last is not None:
        return last
    if contents is None:
        contents = Contents()
    pools, texts = contents.read(data)
    if data.startswith(said):
        now = header
        contents.said, contents.header = said, header
    else:
        now = _checked(Header.of(data))
    if is_live:
        remembered.contents[header.identity] = contents
    return Worker(
        number,
        header.identity,
        header.holders,
        is_live,
        pools,
        contents.facts(data),
        has_forked=bool(now.has_forked),
        was_used=bool(now.was_used),
        drops=now.drops,
        texts=texts,
    )


def _header(said: bytes, contents: Contents | None, size: int) -> Header | None:
    """Return a file's header, that of the last read if it is the same; None if the file is still being made."""
    if contents is not None and contents.said == said:
        known: Header = contents.header
        return known
    header = Header.of(said)
    return None if is_unfinished(header, size) else _checked(header)


def _read_pages(descriptor: int, header: Header, said: bytes, *, is_live: bool) -> tuple[bytes, bool]:
    """Return the part of a file that is in use, and whether no counts moved during the read.

    What a dead writer left is right, whatever it was about to do: the commit words say so.

    Args:
        descriptor: of the file.
        header: as it was read before.
        said: the bytes that say it.
        is_live: whether a process writes the file.
    """
    for seconds in _PAUSES:
        data = read_used(descriptor, header.used)
        after = os.pread(descriptor, HEADER.size, 0)
        # Nearly always nothing has changed at all.
        is_same = after == said or _checked(Header.of(after)).changes == header.changes
        if is_same and not (header.changes & 1 and is_live):
            return data, True
        time.sleep(seconds)
        said = os.pread(descriptor, HEADER.size, 0)
        header = _checked(Header.of(said))
        if not is_possible(os.fstat(descriptor), header.used):
            raise SegmentError(f"it grew to {header.used} bytes without taking them")
    return data, False


def check(header: Header | None, data: bytes) -> Header:
    """Return the header of a file.

    Args:
        header: as read.
        data: the part of the file that is in use.

    Raises:
        SegmentError: a reader of the file would say so, too.
    """
    header = _checked(header)
    Contents().read(data)
    return header


def _checked(header: Header | None) -> Header:
    if header is None:
        raise SegmentError("too short for a header")
    if header.magic != MAGIC:
        raise OtherError("foreign", "not a segment of this project")
    if not header.is_known:
        what = f"layout {header.layout} with {header.fields} fields, this reader knows {LAYOUT_VERSION} with"
        raise OtherError("version", f"{what} {FIELDS}")
    if not header.is_possible:
        raise SegmentError("an impossible header")
    return header
