# SPDX-License-Identifier: Apache-2.0
"""Writes to the standard output, whatever its encoding is: names in an application can have any character."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from sqlalchemy_pool_exporter.errors import BoardError


def write(text: str) -> None:
    """Write a text; a character that the encoding lacks becomes a question mark.

    Raises:
        BoardError: it cannot be written, for example because the disk is full.
    """
    encoding = _encoding()
    _write(text.encode(encoding, "replace").decode(encoding))


def write_json(value: Any) -> None:
    """Write a value as JSON, which has an escape for each character that the encoding may lack.

    Raises:
        BoardError: as above.
    """
    is_unicode = _encoding().lower().replace("-", "").startswith("utf")
    _write(f"{json.dumps(value, indent=2, ensure_ascii=not is_unicode)}\n")


def _encoding() -> str:
    if sys.__stdout__ is None:
        raise BoardError("cannot write to the standard output: it is closed")
    return sys.stdout.encoding or "utf-8"


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried again at the end of the process, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BoardError(f"cannot write to the standard output: {error}") from error
