# SPDX-License-Identifier: Apache-2.0
"""The DSN of a server of any kind: its scheme says which."""

from __future__ import annotations

from .dsn import DSN, check_connect
from .mysql.dsn import MySQLDSN, check_mysql, is_of_mysql

AnyDSN = DSN | MySQLDSN


def parse_dsn(text: str) -> AnyDSN:
    """Return the address of a server of any kind; raises ValueError, whose message quotes nothing of the text."""
    return MySQLDSN(text) if is_of_mysql(text) else DSN(text)


def check(dsn: AnyDSN, section_mode: str | None) -> None:
    """Check what the driver will use beside the DSN itself.

    ``section_mode`` is the mode of the section ``tls``.

    Raises:
        ValueError: every connect would fail. The message quotes nothing of the DSN.
    """
    if isinstance(dsn, MySQLDSN):
        check_mysql(dsn, section_mode)
    else:
        check_connect(dsn, section_mode)
