# SPDX-License-Identifier: Apache-2.0
"""Writes to the standard output, whatever its encoding is: names in an application can have any character."""

from __future__ import annotations

import json
import sys
from typing import Any


def write(text: str) -> None:
    """Write a text; a character that the encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def write_json(value: Any) -> None:
    """Write a value as JSON, which has an escape for each character that the encoding may lack."""
    is_unicode = (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    sys.stdout.write(f"{json.dumps(value, indent=2, ensure_ascii=not is_unicode)}\n")
