# SPDX-License-Identifier: Apache-2.0
"""YAML text → a frozen msgspec struct, with every fault found at once, each with its path and its line.

``msgspec.convert`` stops at the first fault and knows no lines, so the tree of YAML nodes is walked along the struct's
fields here, and msgspec judges only the leaves. Nothing of a *value* ever goes into a message: what somebody typed
beside the wrong key may be a password.
"""

from __future__ import annotations

import difflib
import errno
import functools
import re
import types
import typing
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import yaml

from sqlalchemy_pool_exporter.errors import ConfigError

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T", bound=msgspec.Struct)

# Longer files are refused unread: the pure-Python parser needs about a second for this much, and the largest honest
# configuration has a few kilobytes.
MAX_BYTES = 256 * 1024

_CORE = "tag:yaml.org,2002:"
_MAX_SHOWN = 100
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_QUOTED = re.compile(r"(['\"])(?!.\1|<[a-z ]+>\1).*\1", re.DOTALL)  # but for one character or a kind of token
_NOTHING: Any = object()


class Fault(NamedTuple):
    """One thing wrong: where it stands (a line, a variable), which option, and what to do about it."""

    line: int
    where: str
    path: str
    what: str


class Text(NamedTuple):
    """How a type that YAML does not know is made from text; ``parse`` raises ValueError with a remedy."""

    parse: Callable[[str], object]
    expects: str


class Option(NamedTuple):
    """One option as the reference shows it."""

    path: str
    expects: str
    default: object
    description: str


class Reading(Generic[T]):
    """A struct as far as it could be read, and the faults so far; what was faulty has its default.

    ``texts`` maps the types made from text. ``loose`` takes any unquoted scalar as the text it was written as, which
    is what Go's YAML does and so what files in formats of Go programs rely on.
    """

    def __init__(
        self, text: str, model: type[T], *, texts: Mapping[type, Text] | None = None, loose: bool = False
    ) -> None:
        self.faults: list[Fault] = []
        self.texts = texts or {}
        self._loose = loose
        self._where: dict[str, tuple[int, str]] = {}
        self._unread: set[str] = set()
        self._scalars = yaml.constructor.SafeConstructor()
        root = self._compose(text)
        self.value: T = (
            model() if root is None or root.tag == _CORE + "null" else self._struct(root, model, "")
        )

    # ------------------------------------------------------------------ faults

    def blame(self, path: str, what: str, *also: str) -> None:
        """Report a contradiction at ``path``, unless it or one of ``also`` could not be read: one cause, one line."""
        if not any(part in self._unread for given in (path, *also) for part in _ancestry(given)):
            self._blame(path, what)

    def _blame(self, path: str, what: str) -> None:
        # What is not in the file is reported where it would stand.
        line, where = next((self._where[part] for part in _ancestry(path) if part in self._where), (0, ""))
        self.faults.append(Fault(line, where, path, what))

    def _fault(self, path: str, what: str) -> Any:
        self._blame(path, what)
        self._unread.add(path)
        return _NOTHING

    def _at(self, node: yaml.Node, path: str) -> None:
        line = node.start_mark.line + 1
        self._where[path] = (line, f"line {line}")

    def check(self, source: str) -> T:
        """Return the struct, or raise one ConfigError that lists every fault."""
        if not self.faults:
            return self.value
        count = f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        lines = [": ".join(filter(None, fault[1:])) for fault in sorted(self.faults)[:_MAX_SHOWN]]
        if len(self.faults) > _MAX_SHOWN:
            lines.append(f"and {len(self.faults) - _MAX_SHOWN} more")
        raise ConfigError("\n  ".join([f"{source}: {count}", *lines]))

    # ---------------------------------------------------------------- overrides

    def override(self, path: str, text: object, origin: str) -> None:
        """Set the option at ``path`` to ``text`` (typed leniently, as shells give only text) from ``origin``."""
        self._where[path] = (0, origin)
        annotation: Any = type(self.value)
        for name in path.split("."):
            annotation = _fields(annotation)[name].type
        value = self._convert(text, annotation, strict=False)
        if isinstance(value, _Refusal):
            self._blame(path, value.what)
            self._unread.add(path)
        else:
            self.value = _replaced(self.value, path, value)

    # ------------------------------------------------------------------ walking

    def _compose(self, text: str) -> yaml.Node | None:
        what, line = "", 0
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line = mark.line + 1 if mark else 0
            # PyYAML quotes the text it stumbled over (an unquoted password that starts with "*" is an alias to it).
            what = _QUOTED.sub("…", exc.problem or "cannot be read")
        except yaml.reader.ReaderError as exc:
            line, what = text.count("\n", 0, exc.position) + 1, "a character that YAML does not allow"
        except RecursionError:
            what = "nested too deeply"
        self.faults.append(Fault(line, f"line {line}" if line else "", "", f"not YAML: {what}"))
        return None

    def _value(self, node: yaml.Node, annotation: Any, path: str) -> Any:
        base = _base(annotation)
        origin = typing.get_origin(base)
        structured = isinstance(base, type) and issubclass(base, msgspec.Struct)
        if node.tag == _CORE + "null" and not (structured and path.endswith("]")):
            return _NOTHING  # "key:" with nothing behind it means its default, as templates write it
        if structured:
            return self._struct(node, base, path)
        if origin is tuple:
            return self._list(node, typing.get_args(base)[0], path)
        if origin is dict:
            element = typing.get_args(base)[1]
            values = {
                key: self._value(child, element, where) for key, child, where in self._items(node, path)
            }
            return {key: value for key, value in values.items() if value is not _NOTHING}
        return self._leaf(node, annotation, path)

    def _struct(self, node: yaml.Node, model: Any, path: str) -> Any:
        fields = _fields(model)
        values: dict[str, Any] = {field.name: None for field in fields.values() if field.required}
        for key, child, where in self._items(node, path):
            if key not in fields:
                close = difflib.get_close_matches(key, fields, 1)
                remedy = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(fields)}"
                self._fault(where, f"unknown key{remedy}")
            elif (value := self._value(child, fields[key].type, where)) is not _NOTHING:
                values[fields[key].name] = value
        for name, field in fields.items():
            if field.required and values[field.name] is None:
                self.blame(join(path, name), "required")
        return model(**values)

    def _list(self, node: yaml.Node, element: Any, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._fault(path, f"expected a list, got {_kind(node)}")
        values = []
        for i, child in enumerate(node.value):
            where = f"{path}[{i}]"
            self._at(child, where)
            values.append(self._value(child, element, where))
            if values[-1] is _NOTHING:
                self.blame(where, f"expected {describe(element, self.texts)}, got nothing")
        return _NOTHING if any(value is _NOTHING for value in values) else tuple(values)

    def _items(self, node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, str]]:
        if not isinstance(node, yaml.MappingNode):
            self._fault(path, f"expected a mapping, got {_kind(node)}")
            return
        seen: dict[str, int] = {}
        for key_node, child in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            where = join(path, key)
            self._at(key_node, where)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _CORE + "null":
                self._fault(where, "a key must be text")
            elif not _encodable(key):
                self._fault(where, "has half of a character")
            elif key_node.tag == _CORE + "merge":
                self._fault(where, "merge keys are not supported; write each option out")
            elif key in seen:
                self._fault(where, f"given twice, first in line {seen[key]}")
            else:
                seen[key] = line
                yield key, child, where

    def _leaf(self, node: yaml.Node, annotation: Any, path: str) -> Any:
        expected = describe(annotation, self.texts)
        if not isinstance(node, yaml.ScalarNode):
            return self._fault(path, f"expected {expected}, got {_kind(node)}")
        kind = node.tag.removeprefix(_CORE)
        if kind not in ("str", "int", "float", "bool", "timestamp", "value"):
            return self._fault(path, f"expected {expected}, got a YAML tag (quote text that begins with '!')")
        if not _encodable(node.value):
            return self._fault(path, f"expected {expected}, got half of a character")
        textual = _base(annotation) is str or _base(annotation) in self.texts
        if (self._loose and textual) or kind in ("str", "value"):
            raw: object = node.value
        else:
            try:
                raw = self._scalars.construct_object(node)
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                ValueError,
            ):  # 2020-02-31, !!int '', !!bool x
                raw = None
        value = self._convert(raw, annotation, strict=True)
        if isinstance(value, _Refusal):
            return self._fault(path, value.what)
        return value

    def _convert(self, raw: object, annotation: Any, *, strict: bool) -> Any:
        base, expected = _base(annotation), f"expected {describe(annotation, self.texts)}"
        if base not in self.texts:
            try:
                return msgspec.convert(raw, _given(annotation), strict=strict)
            except msgspec.ValidationError:
                got = _KINDS.get(type(raw), "something else")
                return _Refusal(expected if _KINDS.get(base, "text") == got else f"{expected}, got {got}")
        if not isinstance(raw, str):
            return _Refusal(f"{expected}; put it in quotes")
        try:
            return self.texts[base].parse(raw)
        except ValueError as exc:
            return _Refusal(str(exc))


class _Refusal(NamedTuple):
    what: str


def options(model: type[msgspec.Struct], texts: Mapping[type, Text], path: str = "") -> Iterator[Option]:
    """Yield every option of ``model`` with its dotted path; the elements of a list as ``list[].name``."""
    for field in _fields(model).values():
        where, base = join(path, field.encode_name), _base(field.type)
        inner = typing.get_args(base)[0] if typing.get_origin(base) is tuple else base
        listed = inner is not base
        default = field.default_factory() if callable(field.default_factory) else field.default
        structured = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
        if listed or not structured:
            yield Option(where, describe(field.type, texts), default, _meta(field.type, "description"))
        if structured:
            yield from options(inner, texts, where + "[]" * listed)


def describe(annotation: Any, texts: Mapping[type, Text]) -> str:
    """Say in words which values ``annotation`` takes."""
    base, extra, least = _base(annotation), _meta(annotation, "extra"), _meta(annotation, "ge")
    if extra is not None:
        return str(extra["expects"])
    if base in texts:
        return texts[base].expects
    if typing.get_origin(base) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(base)))}"
    if typing.get_origin(base) is tuple:
        return f"a list, each {describe(typing.get_args(base)[0], texts)}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    text = names.get(base, "a mapping")
    return text if least is None else f"{text} from {least} to {_meta(annotation, 'le')}"


def join(path: str, key: object) -> str:
    """Return the path of ``key`` in ``path``; a key that is not a plain name may be anything, and is not repeated."""
    name = key if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) else "(key)"
    return f"{path}.{name}" if path else name


def relative_to(directory: Path) -> Text:
    """Read paths relative to ``directory``, which is where the file that names them stands."""

    def parse(text: str) -> Path:
        if not text or "\0" in text:
            raise ValueError("expected a path, got an empty one")
        return directory / text

    return Text(parse, "a path")


def read_bytes(path: Path) -> bytes:
    """Return the content of the file at ``path``, which must not be longer than ``MAX_BYTES``; raises OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"longer than {MAX_BYTES} bytes", str(path))
    return content


def read_text(path: Path, read: Callable[[Path], bytes] = read_bytes) -> str:
    """Return the text of the file at ``path``; ConfigError says what is wrong with it, and nothing of its content."""
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        reason = f"byte {exc.start} is not UTF-8"
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or "not a path"
    # Outside the handlers: a UnicodeDecodeError holds the whole content, and would come along as the context.
    raise ConfigError(f"cannot read {str(path)!r}: {reason}")


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "nothing",
}


@functools.cache  # a file may have many of the same, and msgspec resolves the annotations anew each time
def _fields(model: type[Any]) -> Mapping[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(model)}


def _encodable(text: str) -> bool:
    """Tell whether ``text`` has no half of a surrogate pair, which an escape can make and no file or socket takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == _CORE + "null" else "a single value"


def _ancestry(path: str) -> Iterator[str]:
    """Yield ``path`` and what it is part of: ``a.b[0]``, ``a.b``, ``a``, and the whole."""
    while path:
        yield path
        path = re.sub(r"(^|\.)[^.\[]*$|\[\d+\]$", "", path)
    yield path


def _base(annotation: Any) -> Any:
    """Strip ``Annotated`` and ``| None``."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _base(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(_base(arm) for arm in typing.get_args(annotation) if arm is not type(None))
    return annotation


def _given(annotation: Any) -> Any:
    """Strip ``| None``, on which msgspec takes no constraints: None has been dealt with."""
    meta = getattr(annotation, "__metadata__", ())
    return typing.Annotated[(_base(annotation), *meta)] if meta else _base(annotation)


def _meta(annotation: Any, what: str) -> Any:
    found = (getattr(meta, what, None) for meta in getattr(annotation, "__metadata__", ()))
    return next((value for value in found if value is not None), None)


def _replaced(struct: Any, path: str, value: object) -> Any:
    head, _, rest = path.partition(".")
    inner = _replaced(getattr(struct, head), rest, value) if rest else value
    return msgspec.structs.replace(struct, **{head: inner})
