# SPDX-License-Identifier: Apache-2.0
"""How asyncpg itself reads a DSN, to compare this package's reading with it."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from asyncpg import connect_utils

if TYPE_CHECKING:
    import ssl

    import pytest


def read(dsn: str, context: ssl.SSLContext | bool | None = None) -> tuple[list[Any], Any]:
    """Return the addresses and the parameters that asyncpg connects with; raises what asyncpg raises."""
    parse = connect_utils._parse_connect_dsn_and_args
    arguments: dict[str, Any] = dict.fromkeys(inspect.signature(parse).parameters)
    addresses, parameters = parse(**arguments | {"dsn": dsn, "ssl": context})
    return addresses, parameters


def unset_variables(patch: pytest.MonkeyPatch) -> None:
    """Unset the variables that asyncpg reads."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        patch.delenv(name)
