# SPDX-License-Identifier: Apache-2.0
"""Run real applications without and with every pool instrumented, and compare what they answer and have open.

``python -m tools.try_applications .venv/wheel/*.whl`` installs each application from the package index into an
environment of its own, runs it on a real PostgreSQL, and runs it again below ``sqlalchemy-pool-exporter run``. It
fails if an answer, an exit status or the number of rows differs, if a fault in recording was counted, or if the
connections of the pools are not among the server's sessions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from tests.support import pg
from tests.support.ports import free_port
from tools.applications.application import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.applications.application import Application

NAMES = ("celery", "mlflow", "prefect", "airflow")
_EXPORTER = "sqlalchemy-pool-exporter"


class Seen(NamedTuple):
    """What a run left: answers, exit statuses, rows of all tables, open sessions, and the pools' own numbers."""

    answers: Any
    statuses: list[int]
    rows: int
    sessions: int
    pools: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the applications; return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--only", action="append", choices=NAMES, help="this application only (repeatable)")
    parser.add_argument("--environments", type=Path, default=Path(".venv/applications"))
    options = parser.parse_args(arguments)
    differs = False
    with pg.running() as server:
        for name in options.only or NAMES:
            application: Application = import_module(f"tools.applications.{name}").APPLICATION
            programs = _installed(application, options.wheel.resolve(), options.environments.resolve() / name)
            differs |= _try(application, programs, server)
    return int(differs)


def _installed(application: Application, wheel: Path, environment: Path) -> Path:
    """Return the programs of an environment that has the application and this project."""
    programs = environment / "bin"
    if not (programs / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    print(f"installing {application.name}", file=sys.stderr, flush=True)
    subprocess.run([*pip, *application.requirements, f"{wheel}[sidecar]"], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    return programs


def _try(application: Application, programs: Path, server: pg.Server) -> bool:
    """Print what the two runs have in common; return whether something differs."""
    without = _seen(application, programs, server, is_instrumented=False)
    said = _seen(application, programs, server, is_instrumented=True)
    version = subprocess.run(
        [programs / "python", "-c", _VERSION, application.requirements[0].partition("[")[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    pools = said.pools
    same = {
        "answers": without.answers == said.answers,
        "exit statuses": without.statuses == said.statuses,
        "rows": without.rows == said.rows,
    }
    print(
        f"{application.name} {version}",
        *(f"  the same {what}: {'yes' if is_same else 'NO'}" for what, is_same in same.items()),
        f"  exit statuses {said.statuses}, {said.rows:,} rows; sessions of the server: {without.sessions} without",
        f"  {pools['checkouts']:,.0f} checkouts; connections of the pools: {pools['connections']:.0f}, sessions of the "
        f"server: {said.sessions}; {pools['faults']:.0f} faults",
        sep="\n",
        flush=True,
    )
    for what, is_same in same.items():
        if not is_same:
            one, other = (getattr(each, what.replace("exit ", "")) for each in (without, said))
            print(f"  {what} without: {one!r:.1500}\n  {what} with: {other!r:.1500}", flush=True)
    is_right = 0 < pools["connections"] <= said.sessions and pools["checkouts"] and not pools["faults"]
    return not (all(same.values()) and is_right)


_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


def _seen(application: Application, programs: Path, server: pg.Server, *, is_instrumented: bool) -> Seen:
    """Run an application to its end; return what was seen."""
    name = f"{application.name.lower()}_{'with' if is_instrumented else 'without'}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        admin = stack.enter_context(psycopg.connect(server.dsn("trial"), autocommit=True))
        admin.execute(f'CREATE DATABASE "{name}"')
        metrics = free_port()
        launcher = (
            (str(programs / _EXPORTER), "run", "--serve", str(metrics), "--") if is_instrumented else ()
        )
        database = f"postgresql://{server.user}@{server.host}:{server.port}/{name}"
        run = Run(programs, folder, database, free_port(), launcher)
        stack.callback(run.stop)
        answers = application.use(run)
        pools: dict[str, float] = {}
        sessions = _sessions(admin, name)
        if is_instrumented:
            pools, sessions = _settled(admin, name, metrics)
        run.stop()
        return Seen(answers, run.statuses, _rows(database), sessions, pools)


def _settled(admin: psycopg.Connection, name: str, port: int) -> tuple[dict[str, float], int]:
    """Return both sides once they have not changed for a second, or the last of 20."""
    last: tuple[dict[str, float], int] | None = None
    for _ in range(20):
        found = _pools(port), _sessions(admin, name)
        if last is not None and last[1] == found[1] and last[0]["connections"] == found[0]["connections"]:
            return found
        last = found
        time.sleep(1)
    return found


def _pools(port: int) -> dict[str, float]:
    """Return the sums of all pools, from the endpoint."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    sums = {"connections": 0.0, "checkouts": 0.0, "faults": 0.0}
    wanted = {
        "sqlalchemy_pool_connections": "connections",
        "sqlalchemy_pool_checkouts_total": "checkouts",
        "sqlalchemy_pool_exporter_recording_faults_total": "faults",
    }
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in wanted:
                sums[wanted[sample.name]] += sample.value
    return sums


def _sessions(admin: psycopg.Connection, database: str) -> int:
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
        [database],
    ).fetchone()
    assert found is not None  # noqa: S101 - count(*) always has a row
    return int(found[0])


def _rows(database: str) -> int:
    """Return the rows of all tables of a database."""
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        total = 0
        for (table,) in tables:
            count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            found = connection.execute(count).fetchone()
            total += found[0] if found else 0
        return total


if __name__ == "__main__":
    sys.exit(main())
