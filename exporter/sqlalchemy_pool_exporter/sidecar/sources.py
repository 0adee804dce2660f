# SPDX-License-Identifier: Apache-2.0
"""Options from the environment and the command line, which override the configuration file.

`serve` merges them with the file and validates the result. `healthcheck` needs only two options; to start fast, it
imports neither the validation nor, without a file, the YAML parser. So this module imports neither.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .document import Location

CONFIG_VARIABLE = "SQLALCHEMY_POOL_EXPORTER_CONFIG"

# Environment variable → option. Only the options that differ between containers of one image.
VARIABLES: Mapping[str, str] = {
    "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS": "web.listen_address",
    "SQLALCHEMY_POOL_EXPORTER_DIR": "segments.directory",
    "SQLALCHEMY_POOL_EXPORTER_LOG_LEVEL": "log.level",
}

_MAX_PORT = 65535
# An IPv6 address, or a host name of labels of at most 63 characters, or nothing; and a port.
_ADDRESS = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|((?:[\w-]{1,63}\.)*[\w-]{1,63}\.?|)):([0-9]{1,5})", re.ASCII
)


class Address(NamedTuple):
    """A host and port to listen on; an empty host means every interface, IPv6 and IPv4."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``host:port``, ``:port`` or ``[ipv6]:port``; raises ValueError, which names the wrong part."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError("expected host:port, :port or [ipv6]:port")
        if match[1]:
            try:
                ipaddress.IPv6Address(match[1])
            except ValueError:
                raise ValueError("the text in brackets is not an IPv6 address") from None
        if int(match[3]) > _MAX_PORT:
            raise ValueError(f"a port is at most {_MAX_PORT}")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_ADDRESS = Address("", 10079)


class Override(NamedTuple):
    """The text of an option, and its origin: a variable's name or "command line"."""

    text: str
    origin: str


def find_file(path: Path | None) -> Path | None:
    """Return ``path``; without one, the file that the environment variable names."""
    named = os.environ.get(CONFIG_VARIABLE)
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
