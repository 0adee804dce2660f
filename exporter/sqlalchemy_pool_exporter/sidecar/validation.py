# SPDX-License-Identifier: Apache-2.0
"""Plain values → models. One error lists every fault; its messages name the option and never show a value.

pydantic checks each option. A `Section` then checks its options against each other and reads the files that they name,
also when other options of the same configuration are invalid.
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

# Types of pydantic's errors: one option is invalid, or valid options do not fit together.
_INVALID, _CONTRADICTION = "invalid", "contradiction"


class Contradiction(NamedTuple):
    """Options that do not fit together; it is reported at the first location."""

    what: str
    locations: tuple[Location, ...]


@dataclass(frozen=True)
class Context:
    """Directory of the file, the function that reads the files it names, and whether ``check`` opens them at all."""

    directory: Path
    read: Callable[[Path], bytes] = read_bytes
    prove: bool = True


class Section(BaseModel):
    """A mapping of a configuration file: its options, and rules for their combination."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # Required option → the value that replaces an invalid one, so that ``check`` can still check the other options.
    placeholders: ClassVar[Mapping[str, object]] = {}

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterable[Contradiction]:
        """Yield the contradictions between options, and with a ``context`` those found by opening what they name.

        ``given`` has the values as written. Invalid options have their defaults in ``self``. The caller drops a
        contradiction with an invalid option, because that option is reported already.
        """
        del given, context
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_all(cls, given: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(given, cls):
            return given
        section: Self | None
        errors: list[InitErrorDetails] = []
        invalid: list[Location] = []
        if isinstance(given, dict):
            given = dict(cls._given(given))
        try:
            section = handler(given)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                location: Location = found["loc"]
                kind = _CONTRADICTION if found["type"] == _CONTRADICTION else _INVALID
                if kind == _INVALID:
                    invalid.append(location)
                errors.append(_error(kind, location, _explain(cls, found)))
            section = cls._without({details["loc"][:1] for details in errors}, given, handler)
        if section is not None:
            for what, locations in section.check(given, info.context):
                if not any(place[: len(bad)] == bad for place in locations for bad in invalid):
                    errors.append(_error(_CONTRADICTION, locations[0], what))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section  # type: ignore[return-value] # without a section there is an error

    @classmethod
    def _given(cls, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in given.items():
            if key not in cls.model_fields:
                yield key, value
            elif value is not None:  # "key:" without a value, which templates write, means the default
                has_type = cls.model_fields[key].annotation in (bool, int, float)
                yield key, typed(value) if has_type else value

    @classmethod
    def _without(
        cls, faulty: set[Location], given: Any, handler: ModelWrapValidatorHandler[Self]
    ) -> Self | None:
        """Return the section without the options at ``faulty``; None if ``given`` is no mapping."""
        if not isinstance(given, dict):
            return None
        rest = {key: value for key, value in given.items() if (key,) not in faulty}
        placeholders = {key: value for key, value in cls.placeholders.items() if (key,) in faulty}
        return handler({**rest, **placeholders})


def contradiction(what: str, *places: str | Location) -> Contradiction:
    """Return a contradiction at ``places``: names of options, or paths; an empty name is the section itself."""
    locations = [place if isinstance(place, tuple) else (place,) if place else () for place in places]
    return Contradiction(what, tuple(locations))


def validate(
    model: type[S], tree: Any, context: Context, place: Callable[[Location], tuple[int, str]]
) -> tuple[S | None, list[ConfigIssue]]:
    """Return the model of ``tree`` and no issues, or None and all issues; ``place`` returns an option's line."""
    try:
        return model.model_validate(tree, context=context), []
    except ValidationError as error:
        issues = [
            ConfigIssue(
                *place(found["loc"]), found["loc"], found["ctx"]["what"], is_invalid=found["type"] == _INVALID
            )
            for found in error.errors(include_url=False)
        ]
    return None, issues


def report(source: str, issues: Sequence[ConfigIssue]) -> ConfigError:
    """Return one error that lists every issue of ``source`` once, sorted by line."""
    invalid = {issue.location for issue in issues if issue.is_invalid}
    found = sorted(
        {
            (issue.line, issue.place, issue.location, issue.what)
            for issue in issues
            # An override is in no line, and not a part of what is invalid in the file.
            if not (issue.line and any(issue.location[:i] in invalid for i in range(len(issue.location))))
        }
    )
    count = f"{len(found)} fault{'s' * (len(found) > 1)}"
    lines = [
        ": ".join(filter(None, (place, dotted(location), what)))
        for _, place, location, what in found[:_MAX_SHOWN]
    ]
    if len(found) > _MAX_SHOWN:
        lines.append(f"and {len(found) - _MAX_SHOWN} more")
    # An issue that contains the report of another file has several lines.
    return ConfigError("\n  ".join([f"{source}: {count}", *(line.replace("\n", "\n  ") for line in lines)]))


# ------------------------------------------------------------------ types


def text_of(value: object) -> str:
    """Return ``value`` as a plain str; raises pydantic's error if it is not text."""
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return str(value)


def parsed(kind: type[T], parse: Callable[[str], T]) -> PlainValidator:
    """Return the validator of a type that is written as text; a ValueError of ``parse`` becomes the message."""

    def validate(value: Any) -> T:
        return value if isinstance(value, kind) else parse(text_of(value))

    return PlainValidator(validate)


def typed(value: object) -> object:
    """Return `Untyped` text as the type that YAML gives it, and other values unchanged."""
    return value.value if isinstance(value, Untyped) else value


def drop_empty_keys(value: object) -> object:
    """Drop the keys of a mapping that have no value."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    text = text_of(value)
    if not text or "\0" in text:
        raise ValueError("expected a path, got an empty one")
    if isinstance(value, Untyped) or info.context is None:
        return Path(text)  # a path of the command line is relative to the working directory
    return typing.cast("Path", info.context.directory / text)


FilePath = Annotated[Path, PlainValidator(_path), WithJsonSchema({"type": "string", "expects": "a path"})]


# --------------------------------------------------------------- messages


class _Schema(GenerateJsonSchema):
    """JSON schema that leaves out a default which JSON cannot express."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as the base class has it


@functools.cache
def json_schema(model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the JSON schema of ``model``; messages and documentation read from it which values an option takes."""
    return model.model_json_schema(schema_generator=_Schema)


def resolve(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``schema`` with its reference followed, and of "a value or null" the value's schema."""
    if "anyOf" in schema:
        arm = next(arm for arm in schema["anyOf"] if arm.get("type") != "null")
        schema = {**arm, **{key: value for key, value in schema.items() if key != "anyOf"}}
    if "$ref" in schema:
        return typing.cast("Mapping[str, Any]", whole["$defs"][schema["$ref"].rpartition("/")[2]])
    return schema


def describe(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Describe the values that ``schema`` takes."""
    schema = resolve(whole, schema)
    if "expects" in schema:
        return str(schema["expects"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = schema["type"]
    if kind == "array":
        return f"a list, each {describe(whole, schema['items'])}"
    text = _NAMES[kind]
    return f"{text} from {schema['minimum']:g} to {schema['maximum']:.15g}" if "minimum" in schema else text


def _error(kind: str, location: Location, what: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{what}", {"what": what}), loc=location, input=None
    )


def _explain(model: type[BaseModel], error: Any) -> str:
    """Return the message for one of pydantic's errors in ``model``."""
    kind, location = error["type"], error["loc"]
    if kind in (_INVALID, _CONTRADICTION):
        return str(error["ctx"]["what"])  # an inner section has explained it already
    if kind == "missing":
        return "required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(location[-1].lower(), model.model_fields, 1)
        remedy = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(model.model_fields)}"
        return f"unknown key{remedy}"
    whole = json_schema(model)
    schema = whole
    for part in location:
        schema = resolve(whole, schema)
        if isinstance(part, int):
            schema = schema["items"]
        else:
            schema = schema.get("properties", {}).get(part) or schema["additionalProperties"]
    return f"expected {describe(whole, schema)}{_but_got(typed(error['input']), resolve(whole, schema))}"


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
    """Return the end of a message that names the type of ``given``, if the type is what is wrong; else ""."""
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
