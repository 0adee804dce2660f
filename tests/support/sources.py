# SPDX-License-Identifier: Apache-2.0
"""The source of a module, also of one that is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def source_file(module: ModuleType) -> Path:
    """Return the source file of a module; that of a compiled one lies beside the compiled file."""
    path = Path(str(module.__file__))
    return path.with_name(path.name.partition(".")[0] + ".py")


def source_of(module: ModuleType) -> str:
    """Return the source of a module."""
    return source_file(module).read_text("utf-8")


def is_compiled(module: ModuleType) -> bool:
    """Return whether a module is compiled."""
    return not str(module.__file__).endswith(".py")
