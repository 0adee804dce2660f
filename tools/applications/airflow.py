# SPDX-License-Identifier: Apache-2.0
"""Airflow: the migration of its metadata database, its command line and its API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .application import Application

if TYPE_CHECKING:
    from .application import Run


def _use(run: Run) -> Any:
    run.variables |= {
        "AIRFLOW_HOME": str(run.folder / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": run.url("postgresql+psycopg2"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__PORT": str(run.port),
        "AIRFLOW__API_AUTH__JWT_SECRET": "of this trial",
    }
    run.call("airflow", "db", "migrate")
    for number in range(3):
        run.call("airflow", "variables", "set", f"key{number}", f"value {number}")
    run.call("airflow", "pools", "set", "trial", "7", "a pool of tasks")
    values = run.call("airflow", "variables", "list", "--output", "json")
    pools = run.call("airflow", "pools", "list", "--output", "json")
    run.start("airflow", "api-server", "--host", "127.0.0.1", "--port", str(run.port), "--workers", "2")
    health = [run.ask("/api/v2/monitor/health")["metadatabase"]["status"] for _ in range(20)]
    return values.partition("[")[2], pools.partition("[")[2], health


_REQUIREMENTS = ("apache-airflow", "apache-airflow-providers-fab", "psycopg2-binary", "asyncpg")
APPLICATION = Application("Airflow", _REQUIREMENTS, _use)
