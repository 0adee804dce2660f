# SPDX-License-Identifier: Apache-2.0
"""The section ``otlp`` of the configuration."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, PlainValidator, WithJsonSchema

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.document import read_regular, read_text
from sqlalchemy_pool_exporter.sidecar.secret import Secret
from sqlalchemy_pool_exporter.sidecar.validation import Context, FilePath, Section, contradiction, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy_pool_exporter.sidecar.validation import Contradiction

_EXPORTER = (
    "opentelemetry",
    "opentelemetry.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)
# What HTTP takes; of a name, RFC 9110 calls it a token.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"(?! )[ -~\xa1-\xff]*(?<! )")


def _endpoint(text: str) -> str:
    """Return a URL, if it is one; the messages show nothing of it."""
    try:
        url = urlsplit(text)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url or any(character.isspace() for character in text):
        raise ValueError("expected an http or https URL, such as http://collector:4318/v1/metrics")
    if "@" in url.netloc:
        raise ValueError("has credentials; put them into headers_file or headers_env")
    return text


Endpoint = Annotated[
    str,
    PlainValidator(lambda value: _endpoint(text_of(value))),
    WithJsonSchema({"type": "string", "expects": "an http or https URL"}),
]
VariableName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={"expects": "the name of an environment variable"},
    ),
]


class OTLP(Section):
    """Pushing the metrics to an OpenTelemetry collector."""

    endpoint: Endpoint | None = Field(
        default=None,
        description="URL to push to, such as `http://collector:4318/v1/metrics`; without it nothing is pushed. Needs "
        "the extra `otlp`.",
    )
    interval_seconds: float = Field(default=60.0, ge=1, le=3600, description="Time between two pushes.")
    timeout_seconds: float = Field(
        default=10.0,
        ge=0.1,
        le=300,
        description="Longest push, also of the last one; not above the interval.",
    )
    headers_file: FilePath | None = Field(
        default=None,
        description="File with headers, `name=value` with commas or newlines between them, read at every push.",
    )
    headers_env: VariableName | None = Field(
        default=None, description="Environment variable that holds such headers."
    )
    service_name: str = Field(
        default="sqlalchemy-pool-exporter",
        min_length=1,
        description="The attribute `service.name` of the resource, unless the environment says another.",
    )
    own_metrics: bool = Field(
        default=True,
        description="Push the metrics of this exporter by their own names, too; otherwise only those of the semantic "
        "conventions.",
    )

    def check(self, given: Mapping[str, Any], context: Context | None) -> Iterator[Contradiction]:
        """Check the headers by reading them, and that the exporter's library is there."""
        del given
        if self.headers_file is not None and self.headers_env is not None:
            yield contradiction("give one of headers_file and headers_env", "headers_file", "headers_env")
        if self.timeout_seconds > self.interval_seconds:
            yield contradiction("is above interval_seconds", "timeout_seconds", "interval_seconds")
        if self.endpoint is None or context is None or not context.prove:
            return
        if not _has_exporter():
            what = "pushing needs another package: pip install 'sqlalchemy-pool-exporter[otlp]'"
            yield contradiction(what, "endpoint")
        try:
            self.headers()
        except ConfigError as error:
            yield contradiction(str(error), "headers_env" if self.headers_env else "headers_file")

    def headers(self) -> dict[str, Secret]:
        """Return the headers, read anew; raises ConfigError, whose message shows nothing of them."""
        if self.headers_env is not None:
            text = os.environ.get(self.headers_env)
            if text is None:
                raise ConfigError(f"environment variable {self.headers_env!r} is not set")
        else:
            text = "" if self.headers_file is None else read_text(self.headers_file, read_regular)
        found: dict[str, Secret] = {}
        for part in text.replace("\n", ",").split(","):
            name, equals, value = part.partition("=")
            if not part.strip():
                continue
            # As OTEL_EXPORTER_OTLP_HEADERS has them, with values that may be percent-encoded.
            name, value = name.strip().lower(), unquote(value.strip())
            if not (equals and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ConfigError("headers must be name=value, with commas or newlines between them")
            found[name] = Secret(value)
        return found


def _has_exporter() -> bool:
    try:
        return all(find_spec(name) is not None for name in _EXPORTER)
    except ModuleNotFoundError:
        return False
