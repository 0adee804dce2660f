# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the incidents: a stage with a server, workers and a sidecar that asks the server every second."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.incidents.shop import create_tables
from tests.support.incidents import INTERVAL_MINUTES, Incident, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SECONDS = 1.0  # between two probes


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Return what opens a stage; all is ended after the test."""
    with ExitStack() as stack:

        def open_stage(acts: str, *, workers: int = 1, **options: Any) -> Stage:
            if acts == "api":
                pytest.importorskip(
                    "fastapi"
                )  # an environment with the oldest dependencies may be without it
            if "leak_after" not in options:
                # The workers have one in any case. This is the level without it, which most applications have.
                options["sites"] = 0.5
            incident = Incident(
                "orders",
                "",
                lambda _stage, _begin: None,
                acts=f"tests.incidents.{acts}",
                driver="asyncpg" if acts == "api" else "psycopg",
                prepare=create_tables,
                workers=workers,
                **options,
            )
            opened = Stage(incident, stack)
            opened.open(60 * INTERVAL_MINUTES / _SECONDS)
            opened.hire(workers)
            return opened

        yield open_stage
