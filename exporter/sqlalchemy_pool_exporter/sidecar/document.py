# SPDX-License-Identifier: Apache-2.0
"""A YAML file → plain values, and the line of each.

Messages never contain a value: the value of a wrong key may be a password.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import yaml

from sqlalchemy_pool_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Path of an option: keys of mappings and indexes of lists, from the root.
Location = tuple[str | int, ...]

# Longest file. The pure-Python parser needs about a second for this much; large real configurations have a few
# kilobytes.
MAX_BYTES = 256 * 1024

# How long a pipe may take to deliver all of its content.
_PIPE_SECONDS = 2.0

_CORE = "tag:yaml.org,2002:"
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
# A character or a token's name in quotes, which is kept; or any other quoted text.
_QUOTED = re.compile(r"('(?:.|<[a-z ]+>)')|(['\"]).*\2", re.DOTALL)
_TAGGED = "a YAML tag (quote text that begins with '!')"


class ConfigIssue(NamedTuple):
    """One fault: its line (0 if it is in no file), the line or origin in words, the option, and the message.

    ``is_invalid`` says that the option itself is wrong; then faults inside of it are not reported.
    """

    line: int
    place: str
    location: Location
    what: str
    is_invalid: bool = False


class Untyped(str):
    """Text that YAML could read as a number or a boolean; the type of the option decides."""

    __slots__ = ()

    @property
    def value(self) -> object:
        """The text as YAML reads it."""
        resolver: Any = yaml.SafeLoader("")
        tag = resolver.resolve(yaml.ScalarNode, str(self), (True, False))
        return _construct(yaml.ScalarNode(tag, str(self)))


@dataclass(frozen=True)
class Unusable:
    """Replaces a value that no option takes; ``what`` describes it."""

    what: str


class Document:
    """The values of a YAML text, the issues found while reading it, and the lines.

    ``tree`` consists of dicts, tuples and scalars; for an empty text it is an empty dict. With ``untyped``, unquoted
    numbers, booleans and dates are `Untyped`, because Go, whose format this is, reads them by the option's type.
    """

    def __init__(self, text: str, *, untyped: bool = False) -> None:
        self.issues: list[ConfigIssue] = []
        self._untyped = untyped
        self._values: dict[int, Any] = {}
        self.is_yaml = True
        self._root = self._compose(text)
        self.tree: Any = self._read()

    def place(self, location: Location) -> tuple[int, str]:
        """Return the line of ``location``, or of its nearest parent in the file, as a number and in words."""
        node: Any = self._root
        line = 0 if node is None else node.start_mark.line + 1
        for part in location:
            marked, node = _child(node, part)
            if marked is None:
                break
            line = marked.start_mark.line + 1
        return line, f"line {line}" if line else ""

    def _read(self) -> Any:
        if self._root is None or self._root.tag == _CORE + "null":
            return {}
        try:
            return self._value(self._root, ())
        except RecursionError:  # this needs a deeper stack than composing the nodes
            self._refuse(0, "nested too deeply")
            return {}

    def _refuse(self, line: int, what: str) -> None:
        self.is_yaml = False
        self.issues.append(ConfigIssue(line, f"line {line}" if line else "", (), f"not YAML: {what}"))

    def _compose(self, text: str) -> yaml.Node | None:
        what, line = "", 0
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 0
            # PyYAML quotes the text that it could not read: a bare password that starts with "*" is an alias to it.
            what = _QUOTED.sub(lambda quoted: quoted[1] or "…", error.problem or "cannot be read")
        except yaml.reader.ReaderError as error:
            line, what = text.count("\n", 0, error.position) + 1, "a character that YAML does not allow"
        except RecursionError:
            what = "nested too deeply"
        self._refuse(line, what)
        return None

    def _value(self, node: yaml.Node, location: Location) -> Any:
        # Each node is converted once, however many aliases lead to it: a few lines can unfold to billions of values.
        known = id(node)
        if known not in self._values:
            self._values[known] = Unusable("an alias to a node that contains it")
            self._values[known] = self._convert(node, location)
        return self._values[known]

    def _convert(self, node: yaml.Node, location: Location) -> Any:
        if isinstance(node, yaml.CollectionNode) and node.tag not in (_CORE + "map", _CORE + "seq"):
            return Unusable(_TAGGED)
        if isinstance(node, yaml.MappingNode):
            return {key: self._value(child, (*location, key)) for key, child in self._items(node, location)}
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._value(child, (*location, i)) for i, child in enumerate(node.value))
        if not _is_encodable(node.value):
            return Unusable("half of a character")
        if self._untyped and node.tag.removeprefix(_CORE) in ("int", "float", "bool", "timestamp"):
            return Untyped(node.value)
        return _construct(node)

    def _items(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key_node, child in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _CORE + "null":
                what = "a key must be text"
            elif not _is_encodable(key):
                what = "has half of a character"
            elif key_node.tag == _CORE + "merge":
                what = "merge keys are not supported; write each option out"
            elif key in seen:
                what = f"given twice, first in line {seen[key]}"
            else:
                seen[key] = line
                yield key, child
                continue
            where = (*location, key if isinstance(key, str) else "")
            self.issues.append(ConfigIssue(line, f"line {line}", where, what))


def dotted(location: Location) -> str:
    """Return the path of an option, such as ``databases[0].name``; a key that may be a secret is shown as "(key)"."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += "." * bool(path) + (part if _PLAIN_KEY.fullmatch(part) else "(key)")
    return path


def read_bytes(path: Path) -> bytes:
    """Return the content of a file or a pipe; raises OSError, also if that is too long or the pipe's end does not come.

    A shell's ``<(…)`` is a pipe. One that nobody writes to must not be waited for, since no signal would end the wait.
    """
    with _opened(path) as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return _content(file if is_regular else _Pipe(file.fileno(), path), path)


class _Pipe:
    """What comes out of a pipe until its end, and before the deadline."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self._deadline = time.monotonic() + _PIPE_SECONDS

    def read(self, most: int) -> bytes:
        content = b""
        while len(content) < most and (piece := self._piece()):
            content += piece
        return content[:most]

    def _piece(self) -> bytes:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise OSError(errno.ETIMEDOUT, "a pipe that nobody writes to", str(self._path))
        return os.read(self._descriptor, 64 * 1024)


def _content(file: BinaryIO | _Pipe, path: Path) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"longer than {MAX_BYTES} bytes", str(path))
    return content


def read_regular(path: Path) -> bytes:
    """Return the content as `read_bytes` does, but of a regular file only: a pipe would be waited for."""
    with _opened(path) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return _content(file, path)


def refuse_pipe(path: Path) -> None:
    """Raise OSError if ``path`` is a pipe, for a library that would wait for its content."""
    if stat.S_ISFIFO(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _opened(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=0)


def read_text(path: Path, read: Callable[[Path], bytes] = read_bytes) -> str:
    """Return the text of the file at ``path``; raises ConfigError, whose message shows nothing of the content."""
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    # Raised outside the handlers, because a UnicodeDecodeError as the error's context would hold the whole content.
    raise ConfigError(f"cannot read {str(path)!r}: {reason}")


def reason_of(error: OSError | ValueError) -> str:
    """Return why a file could not be read; a path with a NUL raises a ValueError."""
    return getattr(error, "strerror", None) or "not a path"


def _child(node: Any, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the node whose line is that of ``part`` (a mapping's key, a list's item), and the node of the value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    if isinstance(node, yaml.MappingNode):
        return next(((key, child) for key, child in node.value if key.value == part), (None, None))
    return None, None


def _construct(node: yaml.Node) -> Any:
    kind = node.tag.removeprefix(_CORE)
    if kind == "null":
        return None
    if kind in ("str", "value"):  # "value" is a lone "="
        return node.value
    if kind not in ("int", "float", "bool", "timestamp"):
        return Unusable(_TAGGED)
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ArithmeticError, AttributeError, LookupError, ValueError):  # 2020-02-31, !!int '', !!bool x
        return Unusable("something else")


def _is_encodable(text: str) -> bool:
    """Return whether UTF-8 can encode ``text``: YAML escapes can produce half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
