# SPDX-License-Identifier: Apache-2.0
"""Which files of a directory a reader believes: those of owners that the directory allows, and of possible sizes.

Another user who may write into the directory could otherwise put any number into the metrics, or a sparse file that
takes nothing on the disk and much memory in the reader.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from .own_errors import is_own

if TYPE_CHECKING:
    from pathlib import Path

# A writer allocates all that it uses. Some file systems nevertheless show fewer blocks, because they compress zeros. So
# a file that shows fewer may have this many bytes.
_SPARSE_BYTES: Final = 16 * 2**20
_BLOCK_BYTES: Final = 512  # the unit of st_blocks on every file system


class Trust(NamedTuple):
    """Whose files are believed: those of this process's user and of the directory's owner, and those shared by a group.

    A file is shared by a group if this process belongs to the file's group, which may read it, and if the directory is
    one into which others than its owner may write.
    """

    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, directory: Path) -> Trust:
        """Return what the owner and the mode of a directory allow now."""
        users, groups = {os.geteuid()}, frozenset[int]()
        try:
            status = directory.stat()
        except OSError as error:
            if not is_own(error):
                raise
            return cls(frozenset(users), groups)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            groups = frozenset((os.getegid(), *os.getgroups()))
        return cls(frozenset((*users, status.st_uid)), groups)

    def admits(self, file: os.stat_result) -> bool:
        """Return whether a file's owner is allowed."""
        is_shared = bool(file.st_mode & stat.S_IRGRP) and file.st_gid in self.groups
        return file.st_uid in self.users or is_shared


def is_possible(file: os.stat_result, used: int) -> bool:
    """Return whether a writer can have made a file of which this many bytes are in use."""
    return used <= max(file.st_blocks * _BLOCK_BYTES, _SPARSE_BYTES)
