# SPDX-License-Identifier: Apache-2.0
"""The lines of the sidecar's log for programs are JSON, with the time as RFC 3339 writes it."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.sidecar.config import Log
from sqlalchemy_pool_exporter.sidecar.log import set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Return the root logger, whose handlers and level are put back."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    for handler in handlers:
        logger.removeHandler(handler)
    yield logger
    logger.handlers[:], logger.level = handlers, level


@pytest.mark.parametrize(
    ("zone", "winter", "summer"),
    [
        ("UTC", "2026-01-15T12:00:00.123+00:00", "2026-07-15T12:00:00.123+00:00"),
        ("Europe/Berlin", "2026-01-15T13:00:00.123+01:00", "2026-07-15T14:00:00.123+02:00"),
        ("America/St_Johns", "2026-01-15T08:30:00.123-03:30", "2026-07-15T09:30:00.123-02:30"),
    ],
)
def test_time_has_its_offset(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, zone: str, winter: str, summer: str
) -> None:
    """The time is that of the process's time zone, with the offset that it has at that moment."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", zone)
        time.tzset()
        set_up(Log(format="json"))
        (handler,) = root.handlers
        found = []
        for month in (1, 7):
            record = logging.LogRecord("pool", logging.INFO, "", 0, "said %d", (1,), None)
            record.created = datetime(2026, month, 15, 12, 0, 0, 123000, UTC).timestamp()
            found.append(json.loads(handler.format(record)))
    time.tzset()
    assert [winter, summer] == [line["ts"] for line in found]
    assert {"level": "info", "logger": "pool", "msg": "said 1"} == {
        key: value for key, value in found[0].items() if key != "ts"
    }


def test_lines(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is one line, also with a traceback; its time is now."""
    set_up(Log(format="json"))
    try:
        int("two\nlines")
    except ValueError:
        root.exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert ("error", "failed") == (entry["level"], entry["msg"])
    assert "two\\nlines" in entry["exception"]
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(entry["ts"]) < timedelta(minutes=1)
