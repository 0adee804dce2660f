# SPDX-License-Identifier: Apache-2.0
"""The units for systemd fit together, systemd accepts them, and their command runs."""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter import environment
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest
UNITS = ROOT / "config" / "systemd"
EXPORTER = UNITS / "sqlalchemy-pool-exporter.service"
DROP_IN = UNITS / "orders.service.d" / "pools.conf"


def settings(path: Path) -> dict[str, list[str]]:
    """Return the values of each setting of a unit."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key].append(value)
    return found


@pytest.mark.parametrize("path", [EXPORTER, DROP_IN], ids=lambda path: path.name)
def test_the_directory(path: Path) -> None:
    """Both units name one directory below /run, which survives a restart; the application's pools are shown once."""
    found = settings(path)
    (name,) = found["RuntimeDirectory"]
    assert found["RuntimeDirectory"] == settings(EXPORTER)["RuntimeDirectory"]
    assert found["RuntimeDirectoryPreserve"] == ["yes"]
    assert found["RuntimeDirectoryMode"] == ["0700"]
    silent = [f"{environment.SIDECAR}=1"] if path == DROP_IN else []
    assert found["Environment"] == [f"{environment.DIRECTORY}=/run/{name}", *silent]


@pytest.mark.requires("systemd-analyze")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    """Systemd finds no fault in the units, with a program in the place of the exporter and of the application."""
    text = EXPORTER.read_text("utf-8")
    (command,) = settings(EXPORTER)["ExecStart"]
    (tmp_path / EXPORTER.name).write_text(text.replace(command.split()[0], "/bin/true"))
    (tmp_path / "orders.service").write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / DROP_IN.parent.name).mkdir()
    (tmp_path / DROP_IN.parent.name / DROP_IN.name).write_bytes(DROP_IN.read_bytes())
    for unit in (EXPORTER.name, "orders.service"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", f"./{unit}"],
            cwd=tmp_path,
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            capture_output=True,
            text=True,
            check=False,
        )
        faults = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "sqlalchemy" in line]
        assert (faults, done.returncode) == ([], 0), done.stderr


def test_their_environment(tmp_path: Path) -> None:
    """With the variable of the units alone, an application and the exporter share the directory."""
    (command,) = settings(EXPORTER)["ExecStart"]
    assert command.split()[1:] == ["serve"]
    shared: dict[str, Any] = {environment.DIRECTORY: str(tmp_path)}
    with Sidecar(**shared) as sidecar, Worker(tmp_path) as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 3)
        assert sidecar.value("checkouts_total", pool="orders") == 3
