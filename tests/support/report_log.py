# SPDX-License-Identifier: Apache-2.0
"""The reports that this package logs of a pool, for a test to await."""

from __future__ import annotations

import logging
from typing import Any

from tests.support.wait import eventually

_KINDS = ("pool_exhaustion", "pool_failure")  # the attributes of the records


class ReportHandler(logging.Handler):
    """A handler that gets the reports of some pools alone.

    A thread of its own logs each report, so one of an earlier test may come in the midst of this one.
    """

    def __init__(self, *pools: str) -> None:
        super().__init__()
        self.pools = set(pools)
        self.addFilter(self._is_wanted)

    def _is_wanted(self, record: logging.LogRecord) -> bool:
        return any(report["pool"] in self.pools for report in _reports(record))


class ReportLog(ReportHandler):
    """The reports that were logged of some pools."""

    def __init__(self, *pools: str) -> None:
        super().__init__(*pools)
        self.records: list[logging.LogRecord] = []

    @property
    def pool(self) -> str:
        """The name of the pool, if it is one."""
        (pool,) = self.pools
        return pool

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def reports(self, number: int = 1) -> list[dict[str, Any]]:
        """Return the reports, once there are so many."""
        assert eventually(lambda: len(self.records) >= number)
        return [report for record in self.records for report in _reports(record)]


def _reports(record: logging.LogRecord) -> list[dict[str, Any]]:
    return [getattr(record, kind) for kind in _KINDS if hasattr(record, kind)]
