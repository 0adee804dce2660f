# SPDX-License-Identifier: Apache-2.0
"""A process's segment in a shared directory: which file is its own, and the blocks in it.

The files are ``worker-000``, ``worker-001``, … A process takes the first whose lock is free and *goes on counting in
it*: counters survive ``kill -9`` without an archive, and there are as many files as workers ever ran at once.

The lock is an open-file-description lock on a descriptor of its own. It is the kernel's, so it is free the moment its
holder dies, however it dies; a reader asks for it with ``F_OFD_GETLK`` and never takes it; and the mapping, whose
descriptor a forked child inherits, does not keep it alive.

Layout of a file::

    0     magic, layout version, fields of a block, bytes in use, number of blocks, holders so far, identity
    64    who writes it, as JSON
    4096  blocks, one behind the other: length in bytes of the whole, then what the pool is (JSON), then its doubles
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import platform
import stat
import struct
import sys
from pathlib import Path
from typing import Any, Final

from . import segment
from .about import package_version
from .errors import SegmentError

MAGIC: Final = b"SAPOOLEX"
LAYOUT_VERSION: Final = 1
HEADER: Final = struct.Struct("<8sIIQQQ16s")
FACTS_AT: Final = 64
HEADER_BYTES: Final = 4096
BLOCK_HEADER: Final = struct.Struct("<QQ")  # bytes of the block with this header, rows
TEXT_AT: Final = BLOCK_HEADER.size
TEXT_BYTES: Final = 1024 - TEXT_AT
DOUBLES_AT: Final = 1024
FILE_BYTES: Final = 64 * 2**20  # of address space; on the disk only what is in use
FILES: Final = 1024
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock, whose last member is to be 0 for these locks
_OFF_T_WHOLE_FILE: Final = (0, 0)


def file_name(number: int) -> str:
    """Return the name of a slot's file."""
    return f"worker-{number:03d}"


def is_held(descriptor: int) -> bool:
    """Say whether a process holds the lock of a file, without taking it."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_OFF_T_WHOLE_FILE, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


class Lease:
    """The file that this process writes, and its blocks by pool."""

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
        self._free: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        try:
            self.number, self._lock, self._map = self._take()
        except OSError as error:
            message = f"cannot use directory {str(directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {file_name(self.number)} in {str(self.directory)!r}>"

    def block(self, name: str, info: dict[str, str], rows: int) -> memoryview[float]:
        """Return the block of a pool: the one it had in this file, with its counts, or a new one.

        Raises:
            SegmentError: the disk is full, or the name is too long.
        """
        text = json.dumps({"pool": name, **info}, sort_keys=True).encode()
        if len(text) > TEXT_BYTES:
            message = f"the name of pool {name[:40]!r}… takes {len(text)} bytes, more than {TEXT_BYTES}"
            raise SegmentError(message)
        at = self._free.get(name)
        if at is None or self._rows(at) < rows:
            at = self._append(rows)
        else:
            del self._free[name]
        self._taken[name] = at
        self._map[at + TEXT_AT : at + DOUBLES_AT] = text.ljust(TEXT_BYTES, b"\0")
        return self._doubles(at)

    def give_back(self, name: str) -> None:
        """Clear the state of a pool that is not instrumented any more; its counts stay, for the next of its name."""
        at = self._taken.pop(name, None)
        if at is not None:
            segment.clear(self._doubles(at))
            self._free[name] = at

    def close(self) -> None:
        """Give the file up; in a forked child, close what was inherited, since the parent's lock must end with it."""
        os.close(self._lock)

    # -- the file

    def _take(self) -> tuple[int, int, mmap.mmap]:
        for number in range(FILES):
            with contextlib.ExitStack() as stack:
                lock = self._open(self.directory / file_name(number))
                if lock is None:
                    continue
                stack.callback(os.close, lock)
                if not _lock(lock) or not self._is_ours(lock, number):
                    continue
                mapped = self._prepare(lock)
                if mapped is None:
                    continue
                stack.pop_all()
                return number, lock, mapped
        message = f"all {FILES} files in {str(self.directory)!r} are taken"
        raise SegmentError(message)

    def _open(self, path: Path) -> int | None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, self._mode)
        except OSError:
            # Somebody else's file, a link or a directory of that name: pass it over. But a directory in which
            # nothing can be made has no next slot either.
            if path.is_symlink() or path.exists():
                return None
            raise
        return descriptor

    def _is_ours(self, descriptor: int, number: int) -> bool:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            return False
        # Deleted, or deleted and made again, between being opened and being locked.
        with contextlib.suppress(OSError):
            there = os.stat(self.directory / file_name(number), follow_symlinks=False)
            return (there.st_ino, there.st_dev) == (status.st_ino, status.st_dev)
        return False

    def _prepare(self, lock: int) -> mmap.mmap | None:
        size = os.fstat(lock).st_size
        header = os.pread(lock, HEADER.size, 0)
        fresh = size == 0 or not header.strip(b"\0")  # the magic is written last
        if not fresh and not _is_known(header, size):
            return None
        # The lock's own descriptor is never mapped: mmap duplicates what it is given, children inherit that, and the
        # lock would live as long as one of them.
        other = os.open(f"/proc/self/fd/{lock}", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(other, self._mode)
            if fresh:
                # A store into a hole of a full disk ends the process; so whatever is mapped is allocated before.
                os.posix_fallocate(other, 0, HEADER_BYTES)
            os.ftruncate(other, FILE_BYTES)
            mapped = mmap.mmap(other, FILE_BYTES)
        finally:
            os.close(other)
        if fresh:
            HEADER.pack_into(
                mapped, 0, bytes(8), LAYOUT_VERSION, segment.FIELDS, HEADER_BYTES, 0, 0, os.urandom(16)
            )
        mapped[FACTS_AT:HEADER_BYTES] = _facts().ljust(HEADER_BYTES - FACTS_AT, b"\0")
        mapped[: len(MAGIC)] = MAGIC
        self._map = mapped
        for at in self._blocks():
            segment.clear(self._doubles(at))
            self._free[str(self._text(at).get("pool"))] = at
        _set(mapped, holders=HEADER.unpack_from(mapped)[5] + 1)
        return mapped

    # -- its blocks

    def _blocks(self) -> list[int]:
        _, _, _, used, count, *_ = HEADER.unpack_from(self._map)
        found, at = [], HEADER_BYTES
        for _ in range(count):
            found.append(at)
            at += BLOCK_HEADER.unpack_from(self._map, at)[0]
        assert at == used
        return found

    def _append(self, rows: int) -> int:
        _, _, _, used, count, *_ = HEADER.unpack_from(self._map)
        length = DOUBLES_AT + 8 * segment.length(rows)
        if used + length > FILE_BYTES:
            message = f"{file_name(self.number)} has no room for another pool: it holds {count}"
            raise SegmentError(message)
        try:
            os.posix_fallocate(self._lock, used, length)
        except OSError as error:
            message = f"no room in directory {str(self.directory)!r}: {error.strerror or error}"
            raise SegmentError(message) from error
        BLOCK_HEADER.pack_into(self._map, used, length, rows)
        _set(self._map, used=used + length, count=count + 1)
        return used

    def _rows(self, at: int) -> int:
        rows: int = BLOCK_HEADER.unpack_from(self._map, at)[1]
        return rows

    def _text(self, at: int) -> dict[str, Any]:
        text: dict[str, Any] = json.loads(self._map[at + TEXT_AT : at + DOUBLES_AT].rstrip(b"\0") or b"{}")
        return text

    def _doubles(self, at: int) -> memoryview[float]:
        first = at + DOUBLES_AT
        return memoryview(self._map)[first : first + 8 * segment.length(self._rows(at))].cast("d")


def _set(mapped: mmap.mmap, **changes: int) -> None:
    values = dict(zip(("magic", "layout", "fields", "used", "count", "holders", "identity"), HEADER.unpack_from(mapped), strict=True))
    HEADER.pack_into(mapped, 0, *(values | changes).values())


def _lock(descriptor: int) -> bool:
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_OFF_T_WHOLE_FILE, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError:
        return False
    return True


def _is_known(header: bytes, size: int) -> bool:
    if len(header) < HEADER.size:
        return False
    magic, layout, fields, used, *_ = HEADER.unpack(header)
    return (magic, layout, fields) == (MAGIC, LAYOUT_VERSION, segment.FIELDS) and HEADER_BYTES <= used <= size


def _facts() -> bytes:
    facts = {
        "pid": os.getpid(),
        "program": os.path.basename(sys.argv[0] if sys.argv else "")[:200],
        "version": package_version(),
        "python": platform.python_version(),
    }
    return json.dumps(facts).encode()
