# SPDX-License-Identifier: Apache-2.0
"""The segment file that this process leases in a shared directory, and writes its blocks into.

The files are ``worker-000``, ``worker-001``, … A process takes the first file whose lock is free and *goes on counting
in it*. So counters survive ``kill -9`` without an archive, and there are only as many files as workers ever ran at
once.

The lock and the mapping have separate descriptors. Forked children inherit the descriptor of the mapping; if it were
the lock's, a child would keep the lock alive.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import stat
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

from . import facts, lock, remap
from .block import FIELDS, FIRST_COUNTER, clear
from .format import (
    BLOCK_HEADER,
    DOUBLES_AT,
    FACTS_AT,
    FILE_BYTES,
    FILES,
    FORKED_WORD,
    HEADER,
    HEADER_BYTES,
    HOLDERS_WORD,
    LAYOUT_VERSION,
    MAGIC,
    MAGIC_WORD,
    TEXT_AT,
    TEXT_BYTES,
    USED_WORD,
    Header,
    block_bytes,
    blocks_in,
    file_name,
    is_unfinished,
    read_used,
)

if TYPE_CHECKING:
    from pathlib import Path

_WORD: Final = struct.Struct("=Q")
_NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Lease:
    """The file that this process writes, and its blocks.

    Mutable state: the file, and which of its blocks are taken or free.
    """

    def __init__(self, directory: Path, *, group_readable: bool = False) -> None:
        """Take the first free file of a directory.

        Args:
            directory: must exist.
            group_readable: let the group of the file read it, for a sidecar that runs as another user.

        Raises:
            SegmentError: the directory does not exist or cannot be written, or every file in it is taken.
        """
        self.directory = directory
        self._mode = 0o640 if group_readable else 0o600
        self._rows: dict[int, int] = {}
        self._free: defaultdict[bytes, list[int]] = defaultdict(list)
        self._taken: defaultdict[str, list[int]] = defaultdict(list)
        try:
            self.number, self._lock, self._map = self._take()
        except OSError as error:
            message = f"cannot use directory {str(directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error
        self._file = _file_of(os.fstat(self._lock))
        self._holders = memoryview(self._map).cast("Q")[HOLDERS_WORD]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {file_name(self.number)} in {str(self.directory)!r}>"

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.directory / file_name(self.number)

    @property
    def is_there(self) -> bool:
        """Whether the file still has its path, so that a sidecar finds it, and its lock is still held."""
        with contextlib.suppress(OSError):
            there = self.path.lstat()
            return _file_of(there) == _file_of(os.fstat(self._lock)) == self._file
        return False

    def block(self, name: str, info: dict[str, str], rows: int) -> memoryview[float]:
        """Return a block for a pool: one that the same pool had in this file, with its counts, or a new one.

        Raises:
            SegmentError: the disk is full, or the name is too long.
        """
        text = json.dumps({"pool": name, **info}, sort_keys=True).encode()
        if len(text) > TEXT_BYTES:
            message = f"the name of pool {name[:40]!r}… takes {len(text)} bytes, more than {TEXT_BYTES}"
            raise SegmentError(message)
        free = self._free[text]
        at = next((at for at in free if self._rows[at] >= rows), None)
        if at is None:
            at = self._append(text, rows)
        else:
            free.remove(at)
        self._taken[name].append(at)
        return self._doubles(at)

    def give_back(self, name: str) -> None:
        """Clear the state of a pool that is no longer instrumented; the counts stay for the next pool like it."""
        if taken := self._taken[name]:
            # The oldest one: a pool can be garbage-collected after the next pool of the same name was instrumented.
            at = taken.pop(0)
            clear(self._doubles(at))
            self._free[_text_at(self._map, at)].append(at)

    def close(self) -> None:
        """Close the lock's descriptor; a forked child must not keep the lock of its parent alive."""
        # If an application that became a daemon closed all descriptors, this number can belong to another file.
        if _is_file(self._lock, self._file):
            os.close(self._lock)

    def leave(self) -> None:
        """In a forked child: say in the parent's file that the parent has forked, and close the file."""
        words = memoryview(self._map).cast("Q")
        # Another process holds the file if the parent has ended since.
        if words[HOLDERS_WORD] == self._holders:
            words[FORKED_WORD] = 1
        self.close()

    # -- a file that was deleted

    def heal(self) -> None:
        """Go on in a new file of the same identity, with all that this one has, if this one was deleted.

        A reader then replaces what it knows of this process and adds nothing.

        Raises:
            SegmentError: the lock was closed, and another process has taken the file.
            OSError: there is no directory, or no room.
        """
        if self.is_there:
            return
        with contextlib.suppress(OSError):
            if (
                _file_of(self.path.lstat()) == self._file
            ):  # an application that became a daemon closed all files
                self._lock_again()
                return
        for number in (self.number, *range(FILES)):
            path = self.directory / file_name(number)
            with contextlib.ExitStack() as stack:
                try:
                    descriptor = os.open(path, _NEW_FILE, self._mode)
                except FileExistsError:
                    continue
                stack.callback(os.close, descriptor)
                if not (lock.take(descriptor) and _is_ours(descriptor, path)):
                    continue  # another process found the new file first
                self._move(descriptor, path)
                stack.pop_all()
            self.close()
            self.number, self._lock, self._file = number, descriptor, _file_of(os.fstat(descriptor))
            # Last: without it, the file is one that is still being made.
            memoryview(self._map).cast("Q")[MAGIC_WORD] = _WORD.unpack(MAGIC)[0]
            return
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _lock_again(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not lock.take(descriptor):
            os.close(descriptor)
            message = f"the lock of {str(self.path)!r} was closed, and another process has taken the file"
            raise SegmentError(message)
        self._lock = descriptor

    def _move(self, descriptor: int, path: Path) -> None:
        """Put a new file under the mapping."""
        memory = memoryview(self._map)
        used = memory.cast("Q")[USED_WORD]
        try:
            os.fchmod(descriptor, self._mode)
            os.ftruncate(descriptor, FILE_BYTES)
            os.posix_fallocate(descriptor, 0, used)
            # Not the lock's descriptor, as above.
            other = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                memory.cast("Q")[MAGIC_WORD] = 0
                is_open = _is_file(self._lock, self._file)
                old = self._lock if is_open else None
                remap.move([memory], old, other, used=used, counts=self._is_count)
            finally:
                os.close(other)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def _is_count(self, at: int) -> bool:
        """Return whether the bytes at an offset of the file are a counter of a block."""
        return any(
            begin + DOUBLES_AT + 8 * FIRST_COUNTER <= at < begin + DOUBLES_AT + 8 * FIELDS
            for begin in self._rows
        )

    # -- the file

    def _take(self) -> tuple[int, int, mmap.mmap]:
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
                mapped = self._prepare(descriptor, path)
                if mapped is None:
                    continue
                stack.pop_all()
                return number, descriptor, mapped
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _prepare(self, descriptor: int, path: Path) -> mmap.mmap | None:
        """Map the file and make it ready for this process; return None if it is not a valid segment."""
        header = Header.read(descriptor)
        is_new = is_unfinished(header, os.fstat(descriptor).st_size)
        if is_new:
            header = Header(bytes(8), LAYOUT_VERSION, FIELDS, HEADER_BYTES, 0, os.urandom(16), 0)
        elif header is None or not header.is_known or not HEADER_BYTES <= header.used <= FILE_BYTES:
            return None
        try:
            self._rows = {} if is_new else dict(blocks_in(read_used(descriptor, header.used)))
        except SegmentError:
            return None
        mapped = self._mapped(descriptor, path, header.used, is_new=is_new)
        if mapped is None:
            return None
        words = memoryview(mapped).cast("Q")
        if is_new:
            HEADER.pack_into(mapped, 0, *header)
            words[MAGIC_WORD] = _WORD.unpack(MAGIC)[0]
        mapped[FACTS_AT:HEADER_BYTES] = facts.of_this_process().ljust(HEADER_BYTES - FACTS_AT, b"\0")
        for at in self._rows:
            clear(_doubles(mapped, at, self._rows[at]))
            self._free[_text_at(mapped, at)].append(at)
        words[FORKED_WORD] = 0
        # Last: this count tells a reader that what it remembers of the file was written by an earlier holder.
        words[HOLDERS_WORD] = header.holders + 1
        return mapped

    def _mapped(self, descriptor: int, path: Path, used: int, *, is_new: bool) -> mmap.mmap | None:
        # The lock's descriptor is never mapped: mmap duplicates the descriptor and forked children inherit the
        # duplicate, so the lock would live as long as any child.
        other = _open(path)
        if other is None:
            return None
        try:
            if not os.path.sameopenfile(descriptor, other):
                return None
            # This changes ctime. A reader that knows the file as a dead worker's then reads it again.
            os.fchmod(other, self._mode)
            if is_new:
                os.ftruncate(other, 0)
            # If the disk is full, a store into a hole of a mapped file kills the process. So the part in use is
            # allocated before it is mapped.
            os.posix_fallocate(other, 0, used)
            os.ftruncate(other, FILE_BYTES)
            return mmap.mmap(other, FILE_BYTES)
        finally:
            os.close(other)

    # -- its blocks

    def _append(self, text: bytes, rows: int) -> int:
        words = memoryview(self._map).cast("Q")
        at, length = words[USED_WORD], block_bytes(rows)
        if at + length > FILE_BYTES:
            message = f"{file_name(self.number)} has no room for another pool: it holds {len(self._rows)}"
            raise SegmentError(message)
        try:
            os.posix_fallocate(self._lock, at, length)
        except OSError as error:
            message = f"no room in directory {str(self.directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error
        BLOCK_HEADER.pack_into(self._map, at, length, rows)
        self._map[at + TEXT_AT : at + DOUBLES_AT] = text.ljust(TEXT_BYTES, b"\0")
        self._rows[at] = rows
        words[USED_WORD] = at + length
        return at

    def _doubles(self, at: int) -> memoryview[float]:
        return _doubles(self._map, at, self._rows[at])


def _open(path: Path, flags: int = 0, mode: int = 0o600) -> int | None:
    try:
        return os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        # A file of another user, a link or a directory has this name: try the next number. If no file can be made here,
        # or the process has no descriptor left, the next number would fail too.
        if error.errno not in {errno.EMFILE, errno.ENFILE} and os.path.lexists(path):
            return None
        raise


def _is_ours(descriptor: int, path: Path) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
        return False
    with contextlib.suppress(OSError):
        return _file_of(path.lstat()) == _file_of(status)
    return False


def _is_file(descriptor: int, file: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError):
        return _file_of(os.fstat(descriptor)) == file
    return False


def _file_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _text_at(mapped: mmap.mmap, at: int) -> bytes:
    return mapped[at + TEXT_AT : at + DOUBLES_AT].rstrip(b"\0")


def _doubles(mapped: mmap.mmap, at: int, rows: int) -> memoryview[float]:
    return memoryview(mapped)[at + DOUBLES_AT : at + block_bytes(rows)].cast("d")
