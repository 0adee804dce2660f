# SPDX-License-Identifier: Apache-2.0
"""A process's segment in a shared directory: which file is its own, and the blocks in it.

The files are ``worker-000``, ``worker-001``, … A process takes the first whose lock is free and *goes on counting in
it*: counters survive ``kill -9`` without an archive, and there are as many files as workers ever ran at once.

The lock is an open-file-description lock on a descriptor of its own. It is the kernel's, so it is free the moment its
holder dies, however it dies; a reader asks for it with ``F_OFD_GETLK`` and never takes it; and the mapping, whose
descriptor a forked child inherits, does not keep it alive.

Layout of a file::

    0     magic, layout version, fields of a block, bytes in use, holders so far, identity
    64    who writes it, as JSON
    4096  blocks, one behind the other: length in bytes of the whole, rows, what the pool is (JSON), then its doubles

The holder can be killed between any two stores, and a reader looks at any time. So a file counts only once its magic
is there and a block only once the bytes in use include it; either is one aligned store and the last of its kind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import platform
import stat
import struct
import sys
from collections import defaultdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.errors import SegmentError

from . import block as segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYOUT_VERSION: Final = 1
MAGIC: Final = b"SAPOOLEX"
HEADER_BYTES: Final = 4096
FILE_BYTES: Final = 64 * 2**20  # of address space; on the disk only what is in use
FILES: Final = 1024
TEXT_AT: Final = 16
DOUBLES_AT: Final = 1024
_TEXT_BYTES: Final = DOUBLES_AT - TEXT_AT
_FACTS_AT: Final = 64
_HEADER: Final = struct.Struct("=8sIIQQ16s")
_MAGIC_WORD, _USED_WORD, _HOLDERS_WORD = 0, 2, 3  # where in the header, in words of eight bytes
_BLOCK_HEADER: Final = struct.Struct("=QQ")
_WORD: Final = struct.Struct("=Q")
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock, whose last member is to be 0 for these locks
# How long a file can be whose making was interrupted before its magic was written.
_UNFINISHED: Final = (0, HEADER_BYTES, FILE_BYTES)


class Header(NamedTuple):
    """What a file says of itself."""

    magic: bytes
    layout: int
    fields: int
    used: int
    holders: int
    identity: bytes

    @classmethod
    def read(cls, descriptor: int) -> Header | None:
        """Return the header of a file, or None if it is too short for one."""
        data = os.pread(descriptor, _HEADER.size, 0)
        return cls._make(_HEADER.unpack(data)) if len(data) == _HEADER.size else None

    @property
    def is_known(self) -> bool:
        """Whether this version of the package can read the file."""
        return (self.magic, self.layout, self.fields) == (MAGIC, LAYOUT_VERSION, segment.FIELDS)


def file_name(number: int) -> str:
    """Return the name of a slot's file."""
    return f"worker-{number:03d}"


def is_held(descriptor: int) -> bool:
    """Say whether a process holds the lock of a file, without taking it."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def is_unfinished(header: Header | None, size: int) -> bool:
    """Say whether a file is being made, or its maker was killed."""
    return size in _UNFINISHED and (header is None or not any(header.magic))


def read_used(descriptor: int, used: int) -> bytes:
    """Return of a file what is in use.

    Raises:
        SegmentError: the file is shorter than that.
    """
    data = os.pread(descriptor, used, 0)
    if len(data) < used:
        message = f"{len(data)} bytes where {used} are in use"
        raise SegmentError(message)
    return data


def blocks_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where in a file each block begins, and for how many connections it has room.

    Args:
        data: of the file, what is in use.

    Raises:
        SegmentError: one of them has a length that it cannot have.
    """
    at = HEADER_BYTES
    while at < len(data):
        length, rows = _BLOCK_HEADER.unpack_from(data, at) if at + DOUBLES_AT <= len(data) else (0, 0)
        if length != _block_bytes(rows) or at + length > len(data):
            message = f"the block at byte {at} has an impossible length"
            raise SegmentError(message)
        yield at, rows
        at += length


class Lease:
    """The file that this process writes, and its blocks.

    Mutable state: the file, and which of its blocks are taken and which are free.
    """

    def __init__(self, directory: Path, *, group_readable: bool = False) -> None:
        """Take the first free file of a directory.

        Args:
            directory: must exist.
            group_readable: let the group of the file read it, for a sidecar of another user.

        Raises:
            SegmentError: there is no such directory, it cannot be written, or every file in it is taken.
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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {file_name(self.number)} in {str(self.directory)!r}>"

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.directory / file_name(self.number)

    @property
    def is_there(self) -> bool:
        """Whether the file is where a sidecar looks for it, and its lock still held."""
        with contextlib.suppress(OSError):
            there = self.path.lstat()
            return _file_of(there) == _file_of(os.fstat(self._lock)) == self._file
        return False

    def block(self, name: str, info: dict[str, str], rows: int) -> memoryview[float]:
        """Return a block for a pool: the one it had in this file, with its counts, or a new one.

        Raises:
            SegmentError: the disk is full, or the name is too long.
        """
        text = json.dumps({"pool": name, **info}, sort_keys=True).encode()
        if len(text) > _TEXT_BYTES:
            message = f"the name of pool {name[:40]!r}… takes {len(text)} bytes, more than {_TEXT_BYTES}"
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
        """Clear the state of a pool that is not instrumented any more; its counts stay, for the next like it."""
        if taken := self._taken[name]:
            # The older one, if its pool is collected only after the next of the name was made.
            at = taken.pop(0)
            segment.clear(self._doubles(at))
            self._free[_text_at(self._map, at)].append(at)

    def close(self) -> None:
        """Give the file up; in a forked child, close what was inherited, since the parent's lock must end with it."""
        with contextlib.suppress(OSError):
            # An application that closed all descriptors, to become a daemon, has another file under this number.
            if _file_of(os.fstat(self._lock)) == self._file:
                os.close(self._lock)

    # -- the file

    def _take(self) -> tuple[int, int, mmap.mmap]:
        for number in range(FILES):
            path = self.directory / file_name(number)
            with contextlib.ExitStack() as stack:
                lock = _open(path, os.O_CREAT, self._mode)
                if lock is None:
                    continue
                stack.callback(os.close, lock)
                # Looked at before, since nobody else's file is to be locked even for a moment, and again: it may have
                # been deleted, and made anew, meanwhile.
                if not (_is_ours(lock, path) and _lock(lock) and _is_ours(lock, path)):
                    continue
                mapped = self._prepare(lock, path)
                if mapped is None:
                    continue
                stack.pop_all()
                return number, lock, mapped
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _prepare(self, lock: int, path: Path) -> mmap.mmap | None:
        """Return the file in memory, ready for its next holder, or None if it is none of ours."""
        header = Header.read(lock)
        is_new = is_unfinished(header, os.fstat(lock).st_size)
        if is_new:
            header = Header(bytes(8), LAYOUT_VERSION, segment.FIELDS, HEADER_BYTES, 0, os.urandom(16))
        elif header is None or not header.is_known or not HEADER_BYTES <= header.used <= FILE_BYTES:
            return None
        try:
            self._rows = {} if is_new else dict(blocks_in(read_used(lock, header.used)))
        except SegmentError:
            return None
        mapped = self._mapped(lock, path, header.used, is_new=is_new)
        if mapped is None:
            return None
        words = memoryview(mapped).cast("Q")
        if is_new:
            _HEADER.pack_into(mapped, 0, *header)
            words[_MAGIC_WORD] = _WORD.unpack(MAGIC)[0]
        mapped[_FACTS_AT:HEADER_BYTES] = _facts().ljust(HEADER_BYTES - _FACTS_AT, b"\0")
        for at in self._rows:
            segment.clear(_doubles(mapped, at, self._rows[at]))
            self._free[_text_at(mapped, at)].append(at)
        # From here on a reader takes the file for that of a live worker.
        words[_HOLDERS_WORD] = header.holders + 1
        return mapped

    def _mapped(self, lock: int, path: Path, used: int, *, is_new: bool) -> mmap.mmap | None:
        # The lock's own descriptor is never mapped: mmap duplicates what it is given, children inherit that, and the
        # lock would live as long as one of them.
        other = _open(path)
        if other is None:
            return None
        try:
            if not os.path.sameopenfile(lock, other):
                return None
            # A reader that knows the file as a dead worker's looks at it again because this changes its time.
            os.fchmod(other, self._mode)
            if is_new:
                os.ftruncate(other, 0)
            # A store into a hole of a full disk ends the process; so whatever is in use is allocated before.
            os.posix_fallocate(other, 0, used)
            os.ftruncate(other, FILE_BYTES)
            return mmap.mmap(other, FILE_BYTES)
        finally:
            os.close(other)

    # -- its blocks

    def _append(self, text: bytes, rows: int) -> int:
        words = memoryview(self._map).cast("Q")
        at, length = words[_USED_WORD], _block_bytes(rows)
        if at + length > FILE_BYTES:
            message = f"{file_name(self.number)} has no room for another pool: it holds {len(self._rows)}"
            raise SegmentError(message)
        try:
            os.posix_fallocate(self._lock, at, length)
        except OSError as error:
            message = f"no room in directory {str(self.directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error
        _BLOCK_HEADER.pack_into(self._map, at, length, rows)
        self._map[at + TEXT_AT : at + DOUBLES_AT] = text.ljust(_TEXT_BYTES, b"\0")
        self._rows[at] = rows
        words[_USED_WORD] = at + length
        return at

    def _doubles(self, at: int) -> memoryview[float]:
        return _doubles(self._map, at, self._rows[at])


def _open(path: Path, flags: int = 0, mode: int = 0o600) -> int | None:
    try:
        return os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        # Somebody else's file, a link or a directory of that name: pass it over. But where nothing can be made there
        # is no next slot either, and without a descriptor no next try.
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


def _file_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _lock(descriptor: int) -> bool:
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError:
        return False
    return True


def _block_bytes(rows: int) -> int:
    return DOUBLES_AT + 8 * segment.length(rows)


def _text_at(mapped: mmap.mmap, at: int) -> bytes:
    return mapped[at + TEXT_AT : at + DOUBLES_AT].rstrip(b"\0")


def _doubles(mapped: mmap.mmap, at: int, rows: int) -> memoryview[float]:
    return memoryview(mapped)[at + DOUBLES_AT : at + _block_bytes(rows)].cast("d")


def _facts() -> bytes:
    facts: dict[str, Any] = {
        "pid": os.getpid(),
        "program": PurePath(*sys.argv[:1]).name[:200],
        "version": package_version(),
        "python": platform.python_version(),
    }
    return json.dumps(facts).encode()
