# SPDX-License-Identifier: Apache-2.0
"""The files that the page refers to: style, script and icon."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final
from zlib import crc32

TYPES: Final = {
    "board.css": "text/css; charset=utf-8",
    "board.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
FOLDER: Final = "assets"


@cache
def content(name: str) -> bytes:
    """Return a file of ``TYPES``."""
    return files(__package__).joinpath(FOLDER, name).read_bytes()


def href(name: str) -> str:
    """Return the path of a file relative to the page; another content has another one, so a browser may keep it."""
    return f"{FOLDER}/{name}?{crc32(content(name)):08x}"
