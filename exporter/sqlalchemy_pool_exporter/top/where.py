# SPDX-License-Identifier: Apache-2.0
"""What a user names to be looked at: the URL of an endpoint, or a directory of segments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.segment.directory import is_directory

if TYPE_CHECKING:
    from pathlib import Path


def is_url(where: str) -> bool:
    """Return whether this is a URL. A host and a port are one, too, unless a file or directory has that name."""
    if "://" in where or ":" not in where:
        return "://" in where
    try:
        os.stat(where)  # noqa: PTH116 - Path.exists() raises or returns False, as the version of Python has it
    except PermissionError:  # there may be a directory
        return False
    except (OSError, ValueError):
        return True
    return False


def check_directory(directory: Path) -> None:
    """Do nothing if there is a directory.

    Raises:
        BoardError: there is none, or it cannot be looked at, such as one below a directory of another user.
    """
    try:
        found = is_directory(directory)
    except OSError as error:
        raise BoardError(f"cannot read {str(directory)!r}: {error.strerror}") from error
    if not found:
        raise BoardError(f"{str(directory)!r} is no directory")
