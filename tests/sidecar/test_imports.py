# SPDX-License-Identifier: Apache-2.0
"""Each command loads only the libraries that it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "config" / "exporter.yaml"
HEAVY = {"aiohttp", "asyncio", "asyncpg", "bcrypt", "prometheus_client", "pydantic", "sqlalchemy", "yaml"}


def loaded(*arguments: object) -> set[str]:
    """Return the heavy libraries that a command line loads."""
    program = (
        "import sys; from sqlalchemy_pool_exporter.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return HEAVY & set(ended.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "libraries"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["serve", "--help"], set()),
        (["healthcheck", "--listen-address", "127.0.0.1:1"], set()),
        (["healthcheck", "--listen-address", "127.0.0.1:1", "--config", EXAMPLE], {"yaml"}),
        (["rules", "--list"], {"yaml"}),
        (["check-config", "--config", EXAMPLE], {"pydantic", "yaml"}),
    ],
)
def test_a_command_loads_what_it_needs(arguments: list[object], libraries: set[str]) -> None:
    """`healthcheck`, which runs every 30 seconds, and `rules` load no library of the sidecar except YAML."""
    assert libraries == loaded(*arguments)


def test_dashboards(tmp_path: Path) -> None:
    """`dashboards` loads none of the heavy libraries."""
    assert set() == loaded("dashboards", "--out", tmp_path)


def test_serve() -> None:
    """`serve` does not import SQLAlchemy."""
    program = "import sys, sqlalchemy_pool_exporter.sidecar.main; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "sqlalchemy" not in ended.stdout.split()
