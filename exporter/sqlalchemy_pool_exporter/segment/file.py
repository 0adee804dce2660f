# SPDX-License-Identifier: Apache-2.0
"""The segment file that this process leases in a shared directory, and writes its blocks into.

The files are ``worker-000``, ``worker-001``, … A process takes the first file whose lock is free and *goes on counting
in it*. So counters survive ``kill -9`` without an archive, and there are only as many files as workers ever ran at
once.

The file grows by extents, each as long as all before it together, and each mapped by itself. So it takes no more than
that, also where all that is mapped is allocated, and a block never moves.

The lock and the mappings have separate descriptors. Forked children inherit the descriptors of the mappings; if one of
them were the lock's, a child would keep the lock alive.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from . import facts, lock, remap
from .block import FIELDS, PAGE_BYTES
from .descriptors import apart
from .format import (
    FACTS_AT,
    FILE_BYTES,
    FILES,
    FIRST_EXTENT,
    FORKED_WORD,
    HEADER,
    HEADER_BYTES,
    HOLDERS_WORD,
    LAYOUT_VERSION,
    MAGIC,
    MAGIC_WORD,
    WAS_USED_WORD,
    Header,
    file_name,
    is_unfinished,
    read_used,
)
from .own_errors import Suppressing, is_own
from .page import TEXT_BYTES
from .pages import Pages
from .reading_cy import check
from .room import Space

if TYPE_CHECKING:
    from pathlib import Path

    from .pool_block import PoolBlock

_WORD: Final = struct.Struct("=Q")
_NO_FILE: Final = (-1, -1)  # no device and inode
_NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Lease(Space):
    """The file that this process writes, and its pages.

    Mutable state: the file, and how much of it is mapped.
    """

    def __init__(self, directory: Path, *, group_readable: bool = False, has_file: bool = True) -> None:
        """Take the first free file of a directory.

        Args:
            directory: must exist, unless the lease has no file.
            group_readable: let the group of the file read it, for a sidecar that runs as another user.
            has_file: if not, the pages are in memory until ``heal()`` puts a file under them.

        Raises:
            SegmentError: the directory does not exist or cannot be written, or every file in it is taken.
        """
        self.directory = directory
        self._mode = 0o640 if group_readable else 0o600
        self._extents: list[memoryview] = []
        self.number, self._lock, self._file = 0, -1, _NO_FILE
        try:
            self.pages = self._take() if has_file else self._begin(_new_header(), [])
        except OSError as error:
            if not is_own(error):
                raise
            message = f"cannot use directory {str(directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error
        self._holders = self.pages.page(0).cast("Q")[HOLDERS_WORD]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {file_name(self.number)} in {str(self.directory)!r}>"

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.directory / file_name(self.number)

    @property
    def is_there(self) -> bool:
        """Whether the file still has its path, so that a sidecar finds it, and its lock is still held."""
        with Suppressing(OSError):
            there = self.path.lstat()
            return _file_of(there) == _file_of(os.fstat(self._lock)) == self._file
        return False

    def block(self, text: bytes) -> PoolBlock:
        """Return a block for a pool with this description.

        Raises:
            SegmentError: the disk or the file is full, or the name is too long.
        """
        if len(text) > TEXT_BYTES:
            message = f"the name of a pool takes {len(text)} bytes, more than {TEXT_BYTES}"
            raise SegmentError(message)
        return self.pages.pool(text)

    def grow(self, pages: int) -> list[memoryview]:
        """Map another extent and return its pages."""
        begin = pages * PAGE_BYTES
        size = begin or FIRST_EXTENT
        if begin + size > FILE_BYTES:
            message = f"{file_name(self.number)} has no room for another pool: it holds {pages - 1} pages"
            raise SegmentError(message)
        try:
            return self._map(self._lock, self.path, begin, size) if self.is_there else self._map_memory(size)
        except OSError as error:
            if not is_own(error):
                raise
            message = f"no room in directory {str(self.directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error

    def close(self) -> None:
        """Close the lock's descriptor; a forked child must not keep the lock of its parent alive."""
        # If an application that became a daemon closed all descriptors, this number can belong to another file.
        if _is_file(self._lock, self._file):
            os.close(self._lock)

    def leave(self) -> None:
        """In a forked child: say in the parent's file that the parent has forked, and close the file."""
        words = self.pages.page(0).cast("Q")
        # Another process holds the file if the parent has ended since.
        if words[HOLDERS_WORD] == self._holders:
            words[FORKED_WORD] = 1
        self.close()

    # -- a file that was deleted, or not yet made

    @property
    def had_file(self) -> bool:
        """Whether it ever had a file."""
        return self._file != _NO_FILE

    def heal(self) -> None:
        """Go on in a new file of the same identity, with all that this one has, if this one is not in the directory.

        A reader then replaces what it knows of this process and adds nothing.

        Raises:
            SegmentError: the lock was closed, and another process has taken the file.
            OSError: there is no directory, or no room.
        """
        if self.is_there:
            return
        with Suppressing(OSError):
            if (
                _file_of(self.path.lstat()) == self._file
            ):  # an application that became a daemon closed all files
                self._lock_again()
                return
        for number in (self.number, *range(FILES)):
            path = self.directory / file_name(number)
            with contextlib.ExitStack() as stack:
                try:
                    descriptor = apart(os.open(path, _NEW_FILE, self._mode))
                except FileExistsError:
                    continue
                stack.callback(os.close, descriptor)
                if not (lock.take(descriptor) and _is_ours(descriptor, path)):
                    continue  # another process found the new file first
                try:
                    self._move(descriptor, path)
                    stack.pop_all()
                    self._go_on_in(number, descriptor)
                except BaseException:
                    # Also after a time limit of the application. Another process would take a file that is not locked
                    # and truncate it, and the next store into this memory would kill this process.
                    with Suppressing(OSError):
                        path.unlink()
                    raise
            return
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _lock_again(self) -> None:
        descriptor = apart(os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        if not lock.take(descriptor):
            os.close(descriptor)
            message = f"the lock of {str(self.path)!r} was closed, and another process has taken the file"
            raise SegmentError(message)
        self._lock = descriptor

    def _move(self, descriptor: int, path: Path) -> None:
        """Put a new file under the mappings."""
        os.fchmod(descriptor, self._mode)
        os.posix_fallocate(descriptor, 0, sum(map(len, self._extents)))
        # Not the lock's descriptor, as above.
        other = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.pages.page(0).cast("Q")[MAGIC_WORD] = 0
            remap.move(self._extents, other, used=self.pages.used)
        finally:
            os.close(other)

    def _go_on_in(self, number: int, descriptor: int) -> None:
        """Leave the old file; the memory is mapped to the new one."""
        self.close()
        self.number, self._lock, self._file = number, descriptor, _file_of(os.fstat(descriptor))
        # Last: without it, the file is one that is still being made.
        self.pages.page(0).cast("Q")[MAGIC_WORD] = _WORD.unpack(MAGIC)[0]

    # -- the file

    def _take(self) -> Pages:
        for number in range(FILES):
            path = self.directory / file_name(number)
            with contextlib.ExitStack() as stack:
                descriptor = _open(path, os.O_CREAT, self._mode)
                if descriptor is None:
                    continue
                stack.callback(os.close, descriptor)
                # Check before the lock, so that a file of another user is never locked. Check again after it, because
                # the file may have been deleted and made anew meanwhile.
                if not (_is_ours(descriptor, path) and lock.take(descriptor) and _is_ours(descriptor, path)):
                    continue
                self.number, self._lock, self._file = number, descriptor, _file_of(os.fstat(descriptor))
                pages = self._prepare(descriptor, path)
                if pages is None:
                    self._lock, self._file = -1, _NO_FILE
                    continue
                stack.pop_all()
                return pages
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _prepare(self, descriptor: int, path: Path) -> Pages | None:
        """Map the file and make it ready for this process; return None if it is not a valid segment."""
        header = Header.read(descriptor)
        if is_unfinished(header, os.fstat(descriptor).st_size):
            header = _new_header()
            os.ftruncate(descriptor, 0)
        else:
            try:
                # Never write to a file that a reader would call damaged.
                header = check(
                    header, read_used(descriptor, header.used if header and header.is_possible else 0)
                )
            except SegmentError:
                return None
        os.fchmod(descriptor, self._mode)
        self._extents, pages = [], list[memoryview]()
        try:
            while len(pages) * PAGE_BYTES < header.used:
                pages += self._map(descriptor, path, begin := len(pages) * PAGE_BYTES, begin or FIRST_EXTENT)
        except FileNotFoundError:
            return None
        taken_over = self._begin(header, pages)
        # Last: this changes ctime, so a reader that remembers the file as a dead worker's reads it again. It may have
        # read the file since this process took it.
        os.fchmod(descriptor, self._mode)
        return taken_over

    def _begin(self, header: Header, pages: list[memoryview]) -> Pages:
        """Take over the pages that are mapped; without any, begin in memory."""
        is_file = bool(pages)
        pages = pages or self._map_memory(FIRST_EXTENT)
        words = pages[0].cast("Q")
        if not any(header.magic):
            HEADER.pack_into(pages[0], 0, *header)
            if is_file:
                words[MAGIC_WORD] = _WORD.unpack(MAGIC)[0]
        pages[0][FACTS_AT:HEADER_BYTES] = facts.of_this_process().ljust(HEADER_BYTES - FACTS_AT, b"\0")
        words[FORKED_WORD] = words[WAS_USED_WORD] = 0
        taken_over = Pages(self, pages)
        # This count tells a reader that what it remembers of the file was written by an earlier holder.
        words[HOLDERS_WORD] = header.holders + 1
        return taken_over

    def _map(self, descriptor: int, path: Path, begin: int, size: int) -> list[memoryview]:
        """Allocate and map an extent of a file and return its pages.

        Raises:
            OSError: the disk is full, or the file was deleted.
        """
        # The lock's descriptor is never mapped: mmap duplicates the descriptor and forked children inherit the
        # duplicate, so the lock would live as long as any child.
        other = _open(path)
        if other is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            if not os.path.sameopenfile(descriptor, other):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            # If the disk is full, a store into a hole of a mapped file kills the process. So it is allocated first.
            os.posix_fallocate(other, begin, size)
            mapped = memoryview(mmap.mmap(other, size, offset=begin))
        finally:
            os.close(other)
        return self._mapped(mapped)

    def _map_memory(self, size: int) -> list[memoryview]:
        """Map an extent of no file and return its pages; as a file's, a forked child shares it until it leaves."""
        return self._mapped(memoryview(mmap.mmap(-1, size)))

    def _mapped(self, extent: memoryview) -> list[memoryview]:
        self._extents.append(extent)
        return [extent[at : at + PAGE_BYTES] for at in range(0, len(extent), PAGE_BYTES)]


def _new_header() -> Header:
    return Header(
        bytes(8),
        LAYOUT_VERSION,
        FIELDS,
        HEADER_BYTES,
        0,
        os.urandom(16),
        0,
        changes=0,
        drops=0,
        births=0,
        was_used=0,
    )


def _open(path: Path, flags: int = 0, mode: int = 0o600) -> int | None:
    try:
        return apart(os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode))
    except OSError as error:
        # A file of another user, a link or a directory has this name: try the next number. If no file can be made here,
        # or the process has no descriptor left, the next number would fail too.
        if error.errno not in {None, errno.EMFILE, errno.ENFILE} and os.path.lexists(path):
            return None
        raise


def _is_ours(descriptor: int, path: Path) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
        return False
    with Suppressing(OSError):
        return _file_of(path.lstat()) == _file_of(status)
    return False


def _is_file(descriptor: int, file: tuple[int, int]) -> bool:
    with Suppressing(OSError):
        return _file_of(os.fstat(descriptor)) == file
    return False


def _file_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
