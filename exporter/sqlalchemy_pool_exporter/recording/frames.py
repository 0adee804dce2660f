# SPDX-License-Identifier: Apache-2.0
"""Which frames of a stack are the application's own.

A file belongs to one of three kinds:

application  neither installed nor of the standard library; or its module has a prefix that the application named
library      installed, and not known as plumbing; or its module has a prefix that the application excluded
plumbing     SQLAlchemy, this package, the standard library, what servers and frameworks put around a handler, and the
             scripts that pip makes for commands such as gunicorn

The *site* of a checkout is the innermost frame of the application, else the innermost one of a library.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

# Packages between an application and SQLAlchemy, or between a server and the application. A frame of theirs says
# nothing of who checks out.
_PLUMBING: Final = frozenset(
    (
        "aiohttp",
        "anyio",
        "asgiref",
        "billiard",
        "celery",
        "eventlet",
        "fastapi",
        "flask",
        "flask_sqlalchemy",
        "gevent",
        "greenlet",
        "gunicorn",
        "hypercorn",
        "kombu",
        "opentelemetry",
        "sqlalchemy",
        "sqlalchemy_pool_exporter",
        "sqlmodel",
        "starlette",
        "uvicorn",
        "werkzeug",
    )
)
_INSTALLED: Final = frozenset(("site-packages", "dist-packages"))
# Not sysconfig.get_paths(): until Python 3.13 that reads how Python was built, which takes a millisecond.
_STANDARD: Final = f"{PurePath(os.__file__).parent}/"
# Below everything that a server runs in its first thread is the script by which it was started.
_SCRIPTS: Final = frozenset(
    str(folder)
    for folder in (
        PurePath(sys.prefix, "bin"),
        PurePath(sys.executable or "").parent,
        PurePath("/usr/local/bin"),  # of pip and the Python of Debian
        PurePath(os.path.expanduser("~"), ".local", "bin"),  # noqa: PTH111 - Path.expanduser() can raise
    )
)
_MOST_FRAMES: Final = 200
EXCLUDED: Final = "-"  # begins a prefix of modules whose frames are a site only if there is no other


class Kind(Enum):
    """Whose code a frame runs."""

    APPLICATION = 1
    LIBRARY = 2
    PLUMBING = 3


def kind_of(frame: FrameType, prefixes: Sequence[str]) -> Kind:
    """Return whose code a frame runs.

    Args:
        frame: the frame.
        prefixes: of the modules that are the application's, if it named any; with a minus, of those that are not.
    """
    module = module_of(frame)
    package = module.partition(".")[0]
    named = [prefix for prefix in prefixes if not prefix.startswith(EXCLUDED)]
    if any(_is_of(module, prefix[1:]) for prefix in prefixes if prefix.startswith(EXCLUDED)):
        return Kind.LIBRARY
    if any(_is_of(module, prefix) for prefix in named):
        return Kind.APPLICATION
    path = frame.f_code.co_filename
    # Code that SQLAlchemy and others generate has no module.
    if package in _PLUMBING or not module or path.startswith("<frozen "):
        return Kind.PLUMBING
    if _is_installed(path):
        return Kind.LIBRARY
    if _is_standard(path, package) or (module == "__main__" and path.rpartition("/")[0] in _SCRIPTS):
        return Kind.PLUMBING
    return Kind.LIBRARY if named else Kind.APPLICATION


def _is_of(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _is_standard(path: str, package: str) -> bool:
    # In a program that PyInstaller made, no module has a whole path.
    is_frozen = not path.startswith(("/", "<")) and package in sys.stdlib_module_names
    return is_frozen or path.startswith(_STANDARD)


@lru_cache(maxsize=1024)  # each new pool asks for the same files
def _is_installed(path: str) -> bool:
    return not _INSTALLED.isdisjoint(PurePath(path).parts)


def is_of_sqlalchemy(frame: FrameType) -> bool:
    """Return whether a frame runs SQLAlchemy's own code, which calls nothing of the application but its listeners."""
    return module_of(frame).startswith("sqlalchemy.")


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs; an empty one if it has none."""
    # No method of the application is called: its code may run in any dictionary, and call itself anything.
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else ""


def text_of(frame: FrameType) -> str:
    """Return the text of a site: ``module:function:line``."""
    return f"{module_of(frame)}:{frame.f_code.co_qualname}:{frame.f_lineno}"


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, also those behind a greenlet: an asyncio engine checks out in one."""
    count = 0
    current = None
    while count < _MOST_FRAMES:
        while frame is not None and count < _MOST_FRAMES:
            yield frame
            frame, count = frame.f_back, count + 1
        current = _parent(current)
        if current is None:
            return
        frame = current.gr_frame
        count += 1


def site_text(start: FrameType | None, prefixes: Sequence[str]) -> str:
    """Return the site that a frame was called from, as a text; nothing if there is none."""
    library = None
    for frame in stack(start):
        kind = kind_of(frame, prefixes)
        if kind is Kind.APPLICATION:
            return text_of(frame)
        if kind is Kind.LIBRARY and library is None:
            library = frame
    return "" if library is None else text_of(library)


def _parent(greenlet: Any) -> Any:
    """Return the greenlet that started another one, or the current one; None if there is none."""
    module = sys.modules.get("greenlet")
    if module is None:
        return None
    current: Any = module.getcurrent() if greenlet is None else greenlet
    return current.parent
