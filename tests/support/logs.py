# SPDX-License-Identifier: Apache-2.0
"""Log records of the test that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable


def of_this_test(records: Iterable[logging.LogRecord]) -> list[logging.LogRecord]:
    """Return records without those of pools that earlier tests left.

    The garbage collector may find such a pool at any time. Then this package logs that it ends with connections open,
    in a thread, and SQLAlchemy logs a connection that was not returned.
    """
    return [
        record
        for record in records
        if record.module != "undisposed" and not record.name.startswith("sqlalchemy.pool")
    ]


def messages_of_this_test(records: Iterable[logging.LogRecord]) -> list[str]:
    """Return the messages of these records."""
    return [record.getMessage() for record in of_this_test(records)]
