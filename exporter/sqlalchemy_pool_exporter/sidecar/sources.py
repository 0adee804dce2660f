# SPDX-License-Identifier: Apache-2.0
"""Options from the environment and the command line, which override the configuration file.

`serve` merges them with the file and validates the result. `healthcheck` needs only two options; to start fast, it
imports neither the validation nor, without a file, the YAML parser. So this module imports neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.address import SIDECAR_PORT, Address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .document import Location

# Environment variable → option. Only the options that differ between containers of one image.
VARIABLES: Mapping[str, str] = {
    environment.LISTEN_ADDRESS: "web.listen_address",
    environment.DIRECTORY: "segments.directory",
    environment.LOG_LEVEL: "log.level",
    environment.OTLP_ENDPOINT: "otlp.endpoint",
}

DEFAULT_ADDRESS = Address("", SIDECAR_PORT)


class Override(NamedTuple):
    """The text of an option, and its origin: a variable's name or "command line"."""

    text: str
    origin: str


def find_file(path: Path | None) -> Path | None:
    """Return ``path``; without one, the file that the environment variable names."""
    named = os.environ.get(environment.CONFIG)
    return path if path is not None or not named else Path(named)


def find_overrides(command_line: Mapping[str, str | None]) -> dict[Location, Override]:
    """Return the options of environment and command line; the command line wins."""
    overrides: dict[Location, Override] = {}
    for variable, option in VARIABLES.items():
        if text := os.environ.get(variable):
            overrides[tuple(option.split("."))] = Override(text, variable)
    for option, given in command_line.items():
        if given is not None:
            overrides[tuple(option.split("."))] = Override(given, "command line")
    return overrides
