# SPDX-License-Identifier: Apache-2.0
"""The report of an error that comes from the server or the network: where it struck first, and what it means.

Each is one record in the log of the application, at most one a minute for each pool and kind. An error of the
application, such as a wrong statement, is not reported: the application sees it itself.
"""

from __future__ import annotations

import inspect
import logging
import os
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy_pool_exporter.segment import fork, texts

from .exhaustion import Schedule
from .frames import site_text
from .holders_cy import current_holder
from .labels import current_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from .classification import Failure
    from .faults import CountsFaults
    from .origins_cy import Origins

_logger = logging.getLogger("sqlalchemy_pool_exporter")

# The kinds that are reported, and what happened.
MEANINGS: Final = {
    "admin_shutdown": "the server ended the session: it was shut down, or an administrator did it",
    "connect_failed": "there is no connection to the server",
    "connect_timeout": "there was no connection to the server in time",
    "connection_lost": "the connection is lost: the server, or something between, ended it",
    "idle_timeout": "the server ended the session because it was idle for too long",
    "read_only": "the server takes no writes, as after a failover",
    "too_many_connections": "the server has no connection left",
    "unavailable": "the server is starting, stopping or recovering",
}
# A pre-ping that finds a connection dead is no harm: its caller gets another one.
_LAYERS: Final = {"connect": "an attempt to connect", "statement": "a statement"}


class Reported(Protocol):
    """The part of a recorder that is needed here."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""

    @property
    def name(self) -> Callable[[], str]:
        """Returns the name of the pool."""

    @property
    def origins(self) -> Origins | None:
        """Where checkouts come from; None if that is not recorded."""


class FailureReports:
    """The reports of one pool. Mutable state: when the last one was, by layer and kind."""

    __slots__ = ("_schedules",)

    def __init__(self) -> None:
        self._schedules: dict[tuple[str, str], Schedule] = {}

    def failed(self, recorder: Reported, failure: Failure, faults: CountsFaults) -> None:
        """Report a failure of the calling thread, if it is of a kind that is reported and a report is due.

        Args:
            recorder: of the pool.
            failure: what happened.
            faults: counts what goes wrong in the thread that logs.
        """
        layer = str(failure.layer)
        if failure.kind not in MEANINGS or layer not in _LAYERS or fork.forks_workers_in_c():
            return
        schedule = self._schedules.setdefault((layer, failure.kind), Schedule())
        suppressed = schedule.due(recorder.clock())
        if suppressed is None:
            return
        origins, names = recorder.origins, texts.own()
        report = {
            "pool": "",
            "pid": os.getpid(),
            "layer": layer,
            "kind": failure.kind,
            "disposition": failure.disposition,
            "sqlstate": failure.sqlstate,
            "site": "" if origins is None else site_text(inspect.currentframe(), origins.prefixes),
            "holder": names.holder(current_holder().number) if origins is not None else "",
            "label": names.label(current_label.get().number),
            "suppressed": suppressed,
        }
        # In a thread of its own and in the context of the caller, like the report of an exhausted pool.
        is_started = False
        schedule.is_logging = True
        try:
            is_started = fork.start_thread(
                copy_context().run,
                _log,
                recorder.name,
                report,
                schedule,
                faults,
                name="sqlalchemy-pool-exporter report",
            )
        finally:
            if not is_started:
                schedule.is_logging = False


def _log(name: Callable[[], str], report: dict[str, Any], schedule: Schedule, faults: CountsFaults) -> None:
    try:
        report["pool"] = name()
        _logger.warning("%s", message_of(report), extra={"pool_failure": report})
    except Exception as error:  # noqa: BLE001 - nobody would see it in this thread
        faults.fault(error)
    finally:
        schedule.is_logging = False


def message_of(report: dict[str, Any]) -> str:
    """Return the report as one line."""
    at = f" at {report['site']}" if report["site"] else ""
    known = ", ".join(report[name] for name in ("holder", "label") if report[name])
    by = f" ({known})" if known else ""
    state = f" (SQLSTATE {report['sqlstate']})" if report["sqlstate"] else ""
    more = f". {report['suppressed']} more since the last report" if report["suppressed"] else ""
    return (
        f"pool {report['pool']!r} (pid {report['pid']}): {_LAYERS[report['layer']]}{at}{by} failed: "
        f"{report['kind']}{state}: {MEANINGS[report['kind']]}{more}"
    )
