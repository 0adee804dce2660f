# SPDX-License-Identifier: Apache-2.0
"""The sidecar's own log, on standard error."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Log


def set_up(options: Log) -> None:
    """Log as the section ``log`` of the configuration says."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JSONFormatter() if options.format == "json" else plain)
    logging.basicConfig(level=options.level.upper(), handlers=[handler], force=True)


class _JSONFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": _rfc_3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _rfc_3339(seconds: float) -> str:
    """Return a Unix time in the time zone of the process, as RFC 3339 writes it: with its offset."""
    # From UTC: a local time that occurs twice, when clocks are put back, has the offset of its moment.
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="milliseconds")
