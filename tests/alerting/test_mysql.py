# SPDX-License-Identifier: Apache-2.0
"""The alerts take MySQL and MariaDB as they are: what the sidecar says of a real MariaDB fires them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine

from sqlalchemy_pool_exporter import instrument
from tests.support import mariadb, wait
from tests.support.paths import ROOT
from tests.support.promtool import evaluate
from tests.support.samples import key
from tests.support.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.support.samples import Samples

pytest.importorskip("asyncmy")
pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool", *mariadb.PROGRAMS)]

RULES = ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml"
WAIT_TIMEOUT = 600
# Pool → its options: recycled never, after the server's wait_timeout, or in time; with pre-ping and without.
POOLS: dict[str, dict[str, Any]] = {
    "never": {},
    "late": {"pool_recycle": 1800},
    "late-pinged": {"pool_recycle": 1800, "pool_pre_ping": True},
    "pinged": {"pool_pre_ping": True},
    "early": {"pool_recycle": 300},
}
Labels = tuple[tuple[str, str], ...]
LABELS = "alertname, severity, pool, database"
LIMIT_ALERTS = {
    ("SQLAlchemyPoolNoPrePing", "never"),
    ("SQLAlchemyPoolNoPrePing", "late"),
    ("SQLAlchemyPoolRecycleAboveIdleLimit", "late"),
    ("SQLAlchemyPoolRecycleAboveIdleLimit", "late-pinged"),
}


def firing(samples: Samples, expected: dict[str, set[Labels]], path: Path) -> str:
    """Let promtool evaluate the rules over samples that stay for an hour; return its complaints about ``expected``.

    ``expected`` has for each alert the labels with which it fires.
    """
    series = [
        {"series": _selector(name, dict(labels)), "values": f"{value}x60"}
        for (name, labels), value in samples.items()
        if name.startswith("sqlalchemy_pool_") and not name.endswith("_bucket")
    ]
    tests = [
        {
            "expr": f'count by ({LABELS}) (ALERTS{{alertname="{alert}",alertstate="firing"}})',
            "eval_time": "50m",
            "exp_samples": [{"labels": _selector("", dict(one)), "value": 1} for one in sorted(labels)],
        }
        for alert, labels in expected.items()
    ]
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
    }
    path.write_text(json.dumps(content))
    done = evaluate(path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _selector(name: str, labels: dict[str, str]) -> str:
    labels = {"job": "shop", "instance": "a", **labels} if name else labels
    return name + "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(labels.items())) + "}"


def expected_labels(alert: str, severity: str, **labels: str) -> Labels:
    return tuple(sorted({"alertname": alert, "severity": severity, **labels}.items()))


def test_alerts(tmp_path: Path) -> None:
    """They fire for no recycling and a late one, a full server, pools that do not fit, and a read-only server."""
    config = tmp_path / "exporter.yaml"
    with mariadb.running() as server, ExitStack() as stack:
        server.set(wait_timeout=WAIT_TIMEOUT)
        config.write_text(
            f"segments:\n  directory: {tmp_path}\ndatabases:\n  - name: shop\n    dsn: {server.dsn()}\n"
            f"    pools: [{', '.join(POOLS)}]\n    interval_seconds: 1\n    timeout_seconds: 1\n"
        )
        for name, options in POOLS.items():
            engine = create_engine(server.url("pymysql"), **options)
            stack.callback(engine.dispose)
            stack.enter_context(
                instrument(engine, name=name, directory=tmp_path, registry=CollectorRegistry())
            )
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        # Five pools of 15 do not fit into 20, and 20 minus the probe's one are nearly all of it.
        for _ in range(14):
            stack.enter_context(server.connect())
        server.set(read_only=1)
        with Sidecar("--config", config) as sidecar:

            def full() -> Samples | None:
                """Return what is shown of a full server that has just answered: a probe may take more than a second."""
                samples = sidecar.samples()
                taken = [
                    value
                    for (name, _labels), value in samples.items()
                    if name == "sqlalchemy_pool_database_connections"
                ]
                is_read_only, is_up = (
                    samples.get(key(name, database="shop")) == 1.0
                    for name in ("database_read_only", "database_up")
                )
                return samples if sum(taken) >= 20 and is_read_only and is_up else None

            samples = wait.eventually(full)
            assert samples is not None
    warning = {
        alert: {
            expected_labels(alert, "warning", pool=pool) for known, pool in LIMIT_ALERTS if known == alert
        }
        for alert, _pool in LIMIT_ALERTS
    }
    near = "SQLAlchemyPoolDatabaseNearMax"
    ceiling = "SQLAlchemyPoolFleetCeiling"
    expected = {
        **warning,
        near: {expected_labels(near, severity, database="shop") for severity in ("warning", "critical")},
        ceiling: {
            expected_labels(ceiling, severity, database="shop") for severity in ("warning", "critical")
        },
        "SQLAlchemyPoolReadOnlyServer": {
            expected_labels("SQLAlchemyPoolReadOnlyServer", "warning", database="shop", pool=pool)
            for pool in POOLS
        },
        "SQLAlchemyPoolProbeFailing": set(),
    }
    assert "" == firing(samples, expected, tmp_path / "test.yml")
