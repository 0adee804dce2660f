# SPDX-License-Identifier: Apache-2.0
"""Classifies the errors of MySQL, MariaDB and asyncmy, by their numbers; a message can quote user and host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.sidecar.probe.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FAILURES: Final[Sequence[tuple[Sequence[int], Failure]]] = (
    ((1040,), Failure("too_many_connections", "the server is at its max_connections")),
    (
        (1203, 1226),
        Failure("too_many_connections", "the account is at its max_user_connections, or at another limit"),
    ),
    (
        (1045, 1698, 1251, 2049),
        Failure("authentication", "the server refuses user or password"),
    ),
    ((1130,), Failure("authentication", "the server has no account for this host")),
    ((1820, 1862), Failure("authentication", "the password has expired")),
    ((3118, 3955, 4151), Failure("authentication", "the account is locked")),
    ((1044,), Failure("authentication", "the account may not use the database")),
    ((1049, 1046), Failure("configuration", "there is no such database")),
    ((1142, 1143, 1227, 1370), Failure("configuration", "the account lacks the privilege")),
    (
        (1524, 2059, 2061),
        Failure("configuration", "the account needs an authentication plugin that the driver does not have"),
    ),
    ((1129,), Failure("unavailable", "the server blocks this host after many errors: FLUSH HOSTS")),
    ((1053, 1077, 1078, 1079, 3032, 3168, 3169), Failure("unavailable", "the server is shutting down")),
    ((1047,), Failure("unavailable", "the node of the cluster is not ready for queries")),
    ((1317,), Failure("timeout", "an administrator cancelled the query")),
    ((1969, 3024), Failure("timeout", "the time limit of the query passed")),
    ((1043,), Failure("tls", "the handshake failed: the server may not have TLS")),
    ((2026,), Failure("tls", "the TLS handshake failed")),
    ((3159, 4037), Failure("tls", "the server requires TLS")),
    ((1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927), Failure("disconnected", "the connection broke")),
    ((2006, 2013, 2014, 2027, 2055), Failure("disconnected", "the connection broke")),
    ((4031,), Failure("disconnected", "the server ended the idle connection")),
)
_BY_NUMBER: Final[Mapping[int, Failure]] = {
    number: failure for numbers, failure in _FAILURES for number in numbers
}


def is_of_mysql_driver(error: BaseException) -> bool:
    """Return whether an error is asyncmy's."""
    return type(error).__module__.partition(".")[0] == "asyncmy"


def classify_mysql_error(error: BaseException) -> tuple[Failure, int | None]:
    """Return why a probe failed, for an error of asyncmy that wraps none of the system, and its number."""
    first: Any = next(iter(error.args), None)
    number = first if isinstance(first, int) else None
    if number is None:
        return Failure("other", "the driver reports an error"), None
    return _BY_NUMBER.get(number) or Failure("other", "the server reports an error"), number
