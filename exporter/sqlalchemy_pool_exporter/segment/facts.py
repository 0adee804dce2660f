# SPDX-License-Identifier: Apache-2.0
"""The facts in the header of a segment: which process writes it, and the versions that the process runs on.

The kernel does not tell which process holds a lock of this kind, so each worker says so itself. The reader trusts no
fact, because another process can write the file: a fact of another type or length counts as not said.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple

from sqlalchemy_pool_exporter.about import hot_path, package_version

from .command import LEFT_OUT, shown_words
from .format import FILES
from .own_errors import is_own

_PROGRAM_CHARACTERS: Final = 64
_COMMAND_CHARACTERS: Final = 120
_COMMAND_WORDS: Final = 12
_MOST_CHARACTERS: Final = 256  # that a reader takes of one fact
_MOST_PID: Final = 2**22  # Linux has no larger one


class Versions(NamedTuple):
    """Versions that a worker runs on, and how its hot path runs; empty if its file does not say."""

    python: str
    sqlalchemy: str
    hot_path: str


class Process(NamedTuple):
    """Which process a worker is; a text is empty if its file does not say."""

    pid: str
    program: str
    command: str
    started: str


class Facts(NamedTuple):
    """What a worker says of itself; None for what is not readable."""

    versions: Versions | None
    process: Process | None


# -- the writer


def of_this_process() -> bytes:
    """Return the facts about this process as JSON; they fit into the header, whatever the process is called."""
    facts: dict[str, Any] = {
        "pid": os.getpid(),
        "program": _program(),
        "command": _command(),
        "started": started().isoformat(timespec="seconds").replace("+00:00", "Z"),
        "version": package_version(),
        "python": platform.python_version(),
        # Not imported here: a process with pools has imported it.
        "sqlalchemy": getattr(sys.modules.get("sqlalchemy"), "__version__", ""),
        "hot_path": hot_path(),
    }
    return json.dumps(facts).encode()


def started() -> datetime:
    """Return when this process started; now, where ``/proc`` does not say."""
    now = datetime.now(UTC)
    try:
        # The name of the program, in parentheses, can contain anything. Field 22 is in clock ticks since the boot.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError) as error:
        if not is_own(error):
            raise
        return now
    return datetime.fromtimestamp(now.timestamp() - max(age, 0.0), UTC)


def _arguments() -> list[str]:
    # sys.argv: a server that starts workers by multiprocessing gives them its own, while sys.orig_argv and the process
    # title say how multiprocessing started them. An application can put anything there, and a lone surrogate stands for
    # a byte that is no UTF-8.
    words = [str(word).encode("utf-8", "replace").decode() for word in getattr(sys, "argv", ())]
    return words or [""]


def _program() -> str:
    path = PurePath(_arguments()[0])
    if path.name == "__main__.py":  # python -m package
        path = path.parent
    # Nothing, -c and -m: python -c, or an interpreter that a server embeds.
    name = path.name if path.name not in {"", "-c", "-m"} else PurePath(sys.executable or "python").name
    return "".join(shown_words([name]))[:_PROGRAM_CHARACTERS]


def _command() -> str:
    text = " ".join([_program(), *shown_words(_arguments()[1 : 1 + _COMMAND_WORDS])])
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + LEFT_OUT


# -- the reader


@lru_cache(FILES)
def read(data: bytes) -> Facts:
    """Return the facts that a header holds; never raises, whatever the bytes are."""
    try:
        said = json.loads(data)
        said = said if isinstance(said, dict) else {}
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError):
        said = {}
    return Facts(_versions(said), _process(said))


def _versions(said: dict[str, Any]) -> Versions | None:
    # Files of older workers say only the first.
    python, sqlalchemy, hot_path = (
        _text(said.get(name, default))
        for name, default in (("python", None), ("sqlalchemy", ""), ("hot_path", ""))
    )
    if python is None or sqlalchemy is None or hot_path is None:
        return None
    return Versions(python, sqlalchemy, hot_path)


def _process(said: dict[str, Any]) -> Process | None:
    pid = said.get("pid")
    if type(pid) is not int or not 0 < pid <= _MOST_PID:
        return None
    return Process(str(pid), *(_text(said.get(name)) or "" for name in ("program", "command", "started")))


def _text(value: object) -> str | None:
    """Return a text that an exposition can show, or None."""
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS or not value.isprintable():
        return None  # a lone surrogate, which is no UTF-8, is not printable either
    return value
