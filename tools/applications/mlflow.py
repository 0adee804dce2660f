# SPDX-License-Identifier: Apache-2.0
"""MLflow: its tracking server with four workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .application import Application

if TYPE_CHECKING:
    from .application import Run

_RUNS, _THREADS = 60, 6
_API = "/api/2.0/mlflow"


def _use(run: Run) -> Any:
    run.start(
        "mlflow",
        "server",
        *("--backend-store-uri", run.url("postgresql+psycopg2")),
        *("--artifacts-destination", str(run.folder / "artifacts")),
        *("--host", "127.0.0.1", "--port", str(run.port), "--workers", "4"),
    )
    experiment = run.ask(f"{_API}/experiments/create", {"name": "trial"})["experiment_id"]

    def log(number: int) -> None:
        one = run.ask(f"{_API}/runs/create", {"experiment_id": experiment, "run_name": f"run {number}"})
        identifier = one["run"]["info"]["run_id"]
        run.ask(f"{_API}/runs/log-parameter", {"run_id": identifier, "key": "rate", "value": str(number)})
        for step in range(3):
            metric = {"key": "loss", "value": 1 / (number + step + 1), "timestamp": 1, "step": step}
            run.ask(f"{_API}/runs/log-metric", {"run_id": identifier, **metric})

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(log, range(_RUNS)))
    found = run.ask(f"{_API}/runs/search", {"experiment_ids": [experiment], "max_results": 1000})["runs"]
    return sorted(
        (
            each["info"]["run_name"],
            each["data"]["params"],
            [metric["value"] for metric in each["data"]["metrics"]],
        )
        for each in found
    )


APPLICATION = Application("MLflow", ("mlflow", "psycopg2-binary"), _use)
