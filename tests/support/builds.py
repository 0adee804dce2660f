# SPDX-License-Identifier: Apache-2.0
"""Builds distributions of the checkout, in a copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Final

from .paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# What is not in version control.
_MADE: Final = (
    ".venv",
    ".git",
    "build",
    "dist",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    ".coverage*",
)
REQUIRE, DISABLE = (f"SQLALCHEMY_POOL_EXPORTER_{action}_EXTENSION" for action in ("REQUIRE", "DISABLE"))
# Without optimization, which takes most of the time and changes no behaviour that is tested here.
FAST: Final = {"CFLAGS": "-O0"}


def copy_sources(target: Path) -> Path:
    """Copy the repository without what was made in it, so that a build leaves nothing in the checkout."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*_MADE), symlinks=True)
    return target


def run_backend(
    hook: str, source: Path, directory: Path, *, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend, ``build_wheel`` or ``build_sdist``, as pip does, with an interpreter."""
    program = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name not in {REQUIRE, DISABLE}}
    directory.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [python, "-c", program, directory],
        cwd=source,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def build(
    hook: str, source: Path, directory: Path, *, python: str = sys.executable, **variables: str
) -> Path:
    """Build a distribution; return its file, the only one in the directory."""
    done = run_backend(hook, source, directory, python=python, **variables)
    assert 0 == done.returncode, done.stdout + done.stderr
    (path,) = directory.iterdir()
    return path


def build_and_unpack(directory: Path, *, python: str = sys.executable, **variables: str) -> Path:
    """Build a compiled wheel of the checkout for an interpreter; return the folder that its files are in."""
    source, folder = copy_sources(directory / "source"), directory / "installed"
    wheel = build(
        "build_wheel", source, directory / "dist", python=python, **{REQUIRE: "1"}, **FAST, **variables
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
