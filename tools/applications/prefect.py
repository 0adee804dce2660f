# SPDX-License-Identifier: Apache-2.0
"""Prefect: its server, which is asynchronous, with asyncpg."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .application import Application

if TYPE_CHECKING:
    from .application import Run

_FLOWS, _THREADS = 40, 6


def _use(run: Run) -> Any:
    run.variables |= {
        "PREFECT_API_DATABASE_CONNECTION_URL": run.url("postgresql+asyncpg"),
        "PREFECT_HOME": str(run.folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    run.start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(run.port), "--no-ui")
    run.ask("/api/health")

    def create(number: int) -> str:
        flow = run.ask("/api/flows/", {"name": f"flow {number % 10}"})
        made = run.ask("/api/flow_runs/", {"flow_id": flow["id"], "name": f"run {number}"})
        run.ask(f"/api/flow_runs/{made['id']}/set_state", {"state": {"type": "COMPLETED"}})
        return str(run.ask(f"/api/flow_runs/{made['id']}")["state"]["type"])

    with ThreadPoolExecutor(_THREADS) as threads:
        states = list(threads.map(create, range(_FLOWS)))
    return states, run.ask("/api/flows/count", {}), run.ask("/api/flow_runs/count", {})


APPLICATION = Application("Prefect", ("prefect",), _use)
