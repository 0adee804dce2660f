# SPDX-License-Identifier: Apache-2.0
"""Plain values → models, with every fault at once, in words that name the option and never a value.

pydantic finds what is wrong with one option. A `Section` adds what is wrong between its options, and what is wrong
with the files that they name, even if other options of the same file are wrong too.
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from sqlalchemy_pool_exporter.errors import ConfigError

from .document import ConfigIssue, Location, Untyped, Unusable, dotted, read_bytes

if typing.TYPE_CHECKING:
    from pydantic import ModelWrapValidatorHandler

T = TypeVar("T")
S = TypeVar("S", bound="Section")

_MAX_SHOWN = 100

# Types of pydantic's errors: an option that could not be read, and options that do not fit together.
_UNREAD, _CONTRADICTION = "unread", "contradiction"


class Contradiction(NamedTuple):
    """Something wrong between options; the first location is where it is reported."""

    what: str
    locations: tuple[Location, ...]


@dataclass(frozen=True)
class Context:
    """What a file is validated with: its directory, how the files that it names are read, and whether they are."""

    directory: Path
    read: Callable[[Path], bytes] = read_bytes
    prove: bool = True


class Section(BaseModel):
    """A mapping of a configuration file: its options, and the rules between them."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        regex_engine="python-re",
    )

    # What stands for a required option that is not valid, so that the others are judged nevertheless.
    stand_ins: ClassVar[Mapping[str, object]] = {}

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterable[Contradiction]:
        """Yield what is wrong between options, by building what they stand for if there is a ``context``.

        ``given`` has the values as they were written. Options that are not valid have their defaults here; a
        contradiction with one of them is dropped: one cause, one line.
        """
        del given, context
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _judge(cls, given: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(given, cls):
            return given
        section: Self | None
        errors: list[InitErrorDetails] = []
        unread: list[Location] = []
        if isinstance(given, dict):
            given = dict(cls._given(given))
        try:
            section = handler(given)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                location: Location = found["loc"]
                if found["type"] != _CONTRADICTION:
                    unread.append(location)
                errors.append(_error(found["type"], location, _explain(cls, found)))
            section = cls._without({details["loc"][:1] for details in errors}, given, handler)
        if section is not None:
            for what, locations in section.check(given, info.context):
                if not any(place[: len(bad)] == bad for place in locations for bad in unread):
                    errors.append(_error(_CONTRADICTION, locations[0], what))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section  # type: ignore[return-value] # without a section there is an error

    @classmethod
    def _given(cls, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in given.items():
            if key not in cls.model_fields:
                yield key, value
            elif value is not None:  # "key:" with nothing behind it means its default, as templates write it
                has_type = cls.model_fields[key].annotation in (bool, int, float)
                yield key, typed(value) if has_type else value

    @classmethod
    def _without(
        cls, faulty: set[Location], given: Any, handler: ModelWrapValidatorHandler[Self]
    ) -> Self | None:
        """Return the section without the options at ``faulty``, or None if it is no section at all."""
        if not isinstance(given, dict):
            return None
        rest = {key: value for key, value in given.items() if (key,) not in faulty}
        stand_ins = {key: value for key, value in cls.stand_ins.items() if (key,) in faulty}
        return handler({**rest, **stand_ins})


def contradiction(what: str, *places: str | Location) -> Contradiction:
    """Return a contradiction between options of a section; an empty place is the section itself."""
    locations = [place if isinstance(place, tuple) else (place,) if place else () for place in places]
    return Contradiction(what, tuple(locations))


def validate(
    model: type[S], tree: Any, context: Context, place: Callable[[Location], tuple[int, str]]
) -> tuple[S | None, list[ConfigIssue]]:
    """Return the model of ``tree``, or None, and what is wrong; ``place`` says where an option is given."""
    try:
        return model.model_validate(tree, context=context), []
    except ValidationError as error:
        issues = [
            ConfigIssue(
                *place(found["loc"]), found["loc"], found["ctx"]["what"], is_unread=found["type"] == _UNREAD
            )
            for found in error.errors(include_url=False)
        ]
    return None, issues


def report(source: str, issues: Sequence[ConfigIssue]) -> ConfigError:
    """Return the one error that lists every issue of ``source``, each once, by line."""
    unread = {issue.location for issue in issues if issue.is_unread}
    found = sorted(
        {
            (issue.line, issue.place, issue.location, issue.what)
            for issue in issues
            if not any(issue.location[:i] in unread for i in range(len(issue.location)))
        }
    )
    count = f"{len(found)} fault{'s' * (len(found) > 1)}"
    lines = [
        ": ".join(filter(None, (place, dotted(location), what)))
        for _, place, location, what in found[:_MAX_SHOWN]
    ]
    if len(found) > _MAX_SHOWN:
        lines.append(f"and {len(found) - _MAX_SHOWN} more")
    # An issue may be the whole report of another file.
    return ConfigError("\n  ".join([f"{source}: {count}", *(line.replace("\n", "\n  ") for line in lines)]))


# ------------------------------------------------------------------ types


def text_of(value: object) -> str:
    """Return ``value`` if it is text; else the error that pydantic has for what is not."""
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return str(value)


def parsed(kind: type[T], parse: Callable[[str], T]) -> PlainValidator:
    """Return the validator of a type that is written as text; ``parse`` raises ValueError with a remedy."""

    def validate(value: Any) -> T:
        return value if isinstance(value, kind) else parse(text_of(value))

    return PlainValidator(validate)


def typed(value: object) -> object:
    """Return what YAML makes of text that has no type yet."""
    return value.value if isinstance(value, Untyped) else value


def without_nothing(value: object) -> object:
    """Drop the keys of a mapping that have nothing behind them."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    text = text_of(value)
    if not text or "\0" in text:
        raise ValueError("expected a path, got an empty one")
    if isinstance(value, Untyped) or info.context is None:
        return Path(text)  # a shell's paths are relative to its working directory
    return typing.cast("Path", info.context.directory / text)


FilePath = Annotated[Path, PlainValidator(_path), WithJsonSchema({"type": "string", "expects": "a path"})]


# --------------------------------------------------------------- messages


class _Schema(GenerateJsonSchema):
    """JSON schema that leaves out a default which JSON cannot express."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as the base class has it


@functools.cache
def json_schema(model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the JSON schema of ``model``, from which messages and documentation take what an option expects."""
    return model.model_json_schema(schema_generator=_Schema)


def resolve(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference, and take the alternative that is not null."""
    if "anyOf" in schema:
        arm = next(arm for arm in schema["anyOf"] if arm.get("type") != "null")
        schema = {**arm, **{key: value for key, value in schema.items() if key != "anyOf"}}
    if "$ref" in schema:
        return typing.cast("Mapping[str, Any]", whole["$defs"][schema["$ref"].rpartition("/")[2]])
    return schema


def describe(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Say in words which values ``schema`` takes."""
    schema = resolve(whole, schema)
    if "expects" in schema:
        return str(schema["expects"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = schema["type"]
    if kind == "array":
        return f"a list, each {describe(whole, schema['items'])}"
    names = {"boolean": "true or false", "integer": "an integer", "number": "a number", "string": "text"}
    text = names.get(kind, "a mapping")
    return f"{text} from {schema['minimum']:g} to {schema['maximum']:.15g}" if "minimum" in schema else text


def _error(kind: str, location: Location, what: str) -> InitErrorDetails:
    kind = kind if kind == _CONTRADICTION else _UNREAD
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{what}", {"what": what}), loc=location, input=None
    )


def _explain(model: type[BaseModel], error: Any) -> str:
    """Say what is wrong with one option of ``model``."""
    kind, location = error["type"], error["loc"]
    if kind in (_UNREAD, _CONTRADICTION):
        return str(error["ctx"]["what"])  # said by the section inside
    if kind == "missing":
        return "required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], model.model_fields, 1)
        remedy = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(model.model_fields)}"
        return f"unknown key{remedy}"
    whole = json_schema(model)
    schema = whole
    for part in location:
        schema = resolve(whole, schema)
        schema = schema["items"] if isinstance(part, int) else _property(schema, part)
    return f"expected {describe(whole, schema)}{_but_got(typed(error['input']), resolve(whole, schema))}"


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return typing.cast(
        "Mapping[str, Any]", schema.get("properties", {}).get(key) or schema["additionalProperties"]
    )


_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", tuple: "array"}
_NAMES = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "object": "a mapping",
    "array": "a list",
}


def _but_got(given: object, schema: Mapping[str, Any]) -> str:
    """Say of which kind ``given`` is, if that is what is wrong."""
    if given is None or isinstance(given, Unusable):
        return f", got {'nothing' if given is None else given.what}"
    kind, wanted = _KINDS.get(type(given), "other"), schema["type"]
    if kind == wanted or (kind, wanted) == ("integer", "number"):
        return ""
    if kind in ("object", "array"):
        return f", got {_NAMES[kind]}"
    if wanted in ("object", "array"):
        return ", got a single value"
    if wanted == "string" and "enum" not in schema:
        return "; put it in quotes"
    return f", got {_NAMES.get(kind, 'something else')}"
