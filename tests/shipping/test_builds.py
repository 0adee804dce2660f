# SPDX-License-Identifier: Apache-2.0
"""The two builds of the package: compiled, and interpreted where nothing can be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import locked_source, straight_lines
from tests.support.builds import DISABLE, FAST, REQUIRE, build, copy_sources, run_backend
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest

COMPILED = sorted(
    path.relative_to(ROOT / "exporter").as_posix() for path in (ROOT / "exporter").rglob("*_cy.py")
)
NO_COMPILER = {"CC": "/nowhere/cc"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the repository."""
    return copy_sources(tmp_path / "source")


def names(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def try_out(wheel: Path, expected: str) -> str:
    """Record checkouts with an unpacked wheel in a new process; return what the exposition says."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    # The environment has the package, too; this one comes first.
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command: list[str | Path] = [sys.executable, ROOT / "tools" / "try_wheel.py", expected]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_there_is_something_to_compile() -> None:
    """The modules of the hot path have names that the build looks for."""
    assert "sqlalchemy_pool_exporter/recording/ping_cy.py" in COMPILED


@pytest.mark.soak
@pytest.mark.requires("gcc")
def test_compiled(source: Path, tmp_path: Path) -> None:
    """With a compiler the wheel is one for this platform, has each module twice, and runs the compiled one.

    A second build compiles nothing that has not changed, and forgets a file that is no longer there.
    """
    (source / "exporter" / "sqlalchemy_pool_exporter" / "extra.py").touch()
    first = build("build_wheel", source, tmp_path / "first", **{REQUIRE: "1"}, **FAST)
    assert "-none-any" not in first.name
    assert sys.implementation.cache_tag.replace("cpython-", "cp") in first.name
    assert "sqlalchemy_pool_exporter/extra.py" in names(first)
    assert 'hot_path="compiled"' in try_out(first, "compiled")

    (source / "exporter" / "sqlalchemy_pool_exporter" / "extra.py").unlink()
    # A compiler that fails shows that none was needed.
    second = build("build_wheel", source, tmp_path / "second", **{REQUIRE: "1"}, **FAST, **NO_COMPILER)
    pure = build("build_wheel", source, tmp_path / "pure", **{DISABLE: "1"})
    extensions = {name.removesuffix(".py") + EXTENSION_SUFFIXES[0] for name in COMPILED}
    assert names(pure) | extensions == names(second)


@pytest.mark.soak
@pytest.mark.requires("gcc")
@pytest.mark.skipif(sys.version_info < (3, 13), reason="CPython has the lock in C since 3.13")
def test_in_place_with_locks(source: Path) -> None:
    """A build in the sources, as for an interpreter without the GIL, leaves nothing of one with it."""
    package = source / "exporter" / "sqlalchemy_pool_exporter"
    (package / "recording" / f"connection_row_cy{EXTENSION_SUFFIXES[0]}").touch()
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=source,
        env={**os.environ, **FAST, straight_lines.SWITCH: "1"},
        capture_output=True,
        check=True,
    )
    made = {
        ".".join(path.relative_to(package.parent).parts).removesuffix(EXTENSION_SUFFIXES[0])
        for path in package.rglob(f"*{EXTENSION_SUFFIXES[0]}")
    }
    assert made == {*locked_source.COMPILED, "sqlalchemy_pool_exporter.line_lock"}


def test_interpreted(source: Path, tmp_path: Path) -> None:
    """If the extension is disabled, the wheel is one of pure Python, works, and nothing is said."""
    done = run_backend("build_wheel", source, tmp_path / "dist", **{DISABLE: "1"})
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "hot path" not in done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    try_out(wheel, "interpreted")


def test_without_a_compiler(source: Path, tmp_path: Path) -> None:
    """Without a compiler, one line says that the hot path runs interpreted, and the wheel is that of pure Python."""
    done = run_backend("build_wheel", source, tmp_path / "dist", **NO_COMPILER)
    assert 0 == done.returncode, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "hot path" in line]
    assert "the hot path is not compiled and will run interpreted: " in line
    (wheel,) = (tmp_path / "dist").iterdir()
    pure = build("build_wheel", source, tmp_path / "pure", **{DISABLE: "1"})
    assert (pure.name, pure.read_bytes()) == (wheel.name, wheel.read_bytes())


@pytest.mark.parametrize(
    "variables",
    [pytest.param(NO_COMPILER, marks=pytest.mark.soak), {DISABLE: "1"}],
    ids=["no compiler", "disabled"],
)
def test_required(source: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """If the extension is required, a build that cannot compile it fails and says why."""
    done = run_backend("build_wheel", source, tmp_path / "dist", **{REQUIRE: "1"}, **variables)
    assert 0 != done.returncode
    assert "the hot path must be compiled and cannot be: " in done.stderr
    assert [] == list((tmp_path / "dist").iterdir())


def test_reproducible(source: Path, tmp_path: Path) -> None:
    """The wheel of pure Python is the same, byte for byte, whatever the times and modes of the sources are."""
    first = build("build_wheel", source, tmp_path / "first", **{DISABLE: "1"})
    other = copy_sources(tmp_path / "other")
    for path in other.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1e9, 1e9))
    second = build("build_wheel", other, tmp_path / "second", **{DISABLE: "1"})
    assert first.read_bytes() == second.read_bytes()
