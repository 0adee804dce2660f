# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution: content, metadata, installation and licences."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.builds import DISABLE, build, copy_sources
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.wait import eventually
from tools.licences import ALLOWED, faults

if TYPE_CHECKING:
    from email.message import Message

pytestmark = pytest.mark.newest

PACKAGE = ROOT / "exporter" / "sqlalchemy_pool_exporter"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = Path(sys.executable).parent
# By the build of the wheel, in the copy.
MADE = re.compile(r"^build/|\.egg-info/")
# One file of each kind that must be in the source distribution.
IN_SDIST = (
    "config/alerts.yml",
    "config/prometheus/rules/sqlalchemy-pool.rules.yml",
    "dashboards/overview.json",
    "helm/sqlalchemy-pool-exporter/Chart.yaml",
    "helm/sqlalchemy-pool-exporter/templates/deployment.yaml",
    "examples/helm/orders/Chart.yaml",
    "requirements/exporter.lock",
    "setup.py",
    "tests/conftest.py",
    "docs/install.md",
    "Dockerfile",
    "Makefile",
    "LICENSE",
    "CHANGELOG.md",
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of pure Python and the source distribution from a copy of the checkout."""
    directory = tmp_path_factory.mktemp("dist")
    source = copy_sources(directory / "source")
    for hook in ("build_wheel", "build_sdist"):
        shutil.copy(build(hook, source, directory / hook, **{DISABLE: "1"}), directory)
    return directory


def the(directory: Path, pattern: str) -> Path:
    """Return the only file that matches a pattern."""
    (path,) = directory.glob(pattern)
    return path


def metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def check(tool: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a tool of the environment; return its status and output."""
    said = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=False)
    return said.returncode, said.stdout + said.stderr


def test_wheel_contents(dist: Path) -> None:
    """The wheel has the package and its bundled files, as in the repository, and nothing else."""
    sources = {
        **{f"bundled/dashboards/{path.name}": path for path in (ROOT / "dashboards").glob("*.json")},
        "bundled/alerts.yml": ROOT / "config" / "alerts.yml",
        "bundled/exporter.yaml": ROOT / "config" / "exporter.yaml",
        "bundled/opentelemetry.rules.yml": ROOT
        / "config"
        / "prometheus"
        / "rules"
        / "opentelemetry.rules.yml",
        "bundled/thresholds.json": ROOT / "config" / "thresholds.json",
        **{
            path.relative_to(PACKAGE).as_posix(): path
            for path in PACKAGE.rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        },
    }
    with zipfile.ZipFile(the(dist, "*.whl")) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert {f"sqlalchemy_pool_exporter/{name}": path.read_bytes() for name, path in sources.items()} == packed


def test_checkers(dist: Path) -> None:
    """check-wheel-contents and `twine check` accept the distributions."""
    assert 0 == check("check-wheel-contents", the(dist, "*.whl"))[0]
    status, said = check("twine", "check", "--strict", the(dist, "*.whl"), the(dist, "*.tar.gz"))
    assert (0, 2) == (status, said.count("PASSED"))


def test_source_distribution_builds_the_wheel(dist: Path, tmp_path: Path) -> None:
    """The source distribution has the repository's files, and builds the same wheel byte for byte."""
    with tarfile.open(the(dist, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = the(tmp_path, "sqlalchemy_pool_exporter-*")
    assert [] == [name for name in IN_SDIST if not (source / name).exists()]
    packed = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    repository = {
        path.relative_to(dist / "source").as_posix()
        for path in (dist / "source").rglob("*")
        if path.is_file()
    }
    by_setuptools = {"PKG-INFO", "setup.cfg"}
    assert by_setuptools == {name for name in packed - repository if ".egg-info/" not in name}
    assert {".ci"} == {name.partition("/")[0] for name in repository - packed if not MADE.search(name)}
    wheel = build("build_wheel", source, tmp_path / "dist", **{DISABLE: "1"})
    assert the(dist, "*.whl").read_bytes() == wheel.read_bytes()


def test_metadata(dist: Path) -> None:
    """The metadata has the name, version, licence, Python version, links and description."""
    said = metadata(the(dist, "*.whl"))
    assert (PROJECT["name"], PROJECT["version"]) == (said["Name"], said["Version"])
    assert ("Apache-2.0", "LICENSE") == (said["License-Expression"], said["License-File"])
    assert ">=3.11" == said["Requires-Python"]
    assert {"Homepage", "Documentation", "Changelog", "Issues"} == {
        url.partition(",")[0] for url in said.get_all("Project-URL", [])
    }
    assert all(said[name] for name in ("Summary", "Keywords", "Author", "Description-Content-Type"))
    assert len(str(said.get_payload())) > 1000


def test_version_has_one_place() -> None:
    """The version is written in pyproject.toml and in no module of the package."""
    assert PROJECT["version"] == version(PROJECT["name"])
    places = [
        path.name
        for path in (ROOT / "exporter").rglob("*.py")
        if re.search(rf"['\"]{re.escape(PROJECT['version'])}['\"]", path.read_text())
    ]
    assert [] == places


def component(*licences: Any) -> dict[str, Any]:
    """Return an SBOM of one component."""
    return {"components": [{"name": "thing", "version": "1.0", "licenses": list(licences)}]}


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ({"license": {"id": "MIT"}}, None),
        ({"expression": "Apache-2.0 AND BSD-2-Clause"}, None),
        ({"license": {"name": "License :: OSI Approved :: Apache Software License"}}, None),
        ({"license": {"id": "GPL-3.0-only"}}, "GPL-3.0-only"),
        ({"expression": "MIT AND LGPL-3.0-only"}, "LGPL-3.0-only"),
        ({"expression": "MIT OR GPL-2.0-only"}, "MIT OR GPL-2.0-only"),
        ({"license": {"name": "BSD License"}}, "BSD License"),
        ({"license": {"name": "ours"}}, "ours"),
    ],
)
def test_licences(licence: dict[str, Any], refused: str | None) -> None:
    """Known permissive licences may be shipped; unknown, vague and copyleft licences may not."""
    found = [f"thing 1.0: {refused} is not among those that may be shipped"] if refused else []
    assert found == faults(component(licence))
    assert all(ALLOWED.values())


def test_no_licence() -> None:
    """A component without a licence may not be shipped, nor one with a bad licence beside a good one."""
    assert ["thing 1.0: says no licence"] == faults(component())
    assert 1 == len(faults(component({"license": {"id": "MIT"}}, {"license": {"id": "AGPL-3.0-only"}})))


def test_into_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    """Every command works in an environment with only the wheel and its dependencies, and some without extras."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv" / "bin" / "python")]

    def install(extra: str) -> None:
        # Without bytecode of all that is installed and not loaded, which would take half of the time.
        arguments = [*pip, "install", "--quiet", "--no-compile", f"{the(dist, '*.whl')}{extra}"]
        subprocess.run(arguments, check=True, capture_output=True, cwd=tmp_path)

    command = tmp_path / "venv" / "bin" / "sqlalchemy-pool-exporter"

    def said(*arguments: str) -> str:
        return subprocess.run(
            [command, *arguments], check=True, capture_output=True, text=True, cwd=tmp_path
        ).stdout

    install("")
    assert f"sqlalchemy-pool-exporter {PROJECT['version']}\n" == said("--version")
    assert "held_seconds" in said("rules", "--list")
    said("rules", "--out", "rules")
    said("dashboards", "--out", "dashboards")
    rules = (tmp_path / "rules" / "sqlalchemy-pool.rules.yml").read_text()
    assert (ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml").read_text() == rules
    assert {path.name for path in (ROOT / "dashboards").glob("*.json")} == {
        path.name for path in (tmp_path / "dashboards").iterdir()
    }
    install("[sidecar]")
    assert "the configuration is valid\n" == said("check-config")
    with Sidecar(program=command) as sidecar:
        assert eventually(lambda: 200 == sidecar.get("/metrics")[0])
        assert "200 OK\n" == said("healthcheck", "--listen-address", sidecar.url.rpartition("//")[2])
        assert 0 == sidecar.end()
