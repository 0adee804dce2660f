# SPDX-License-Identifier: Apache-2.0
"""The part of the build that pyproject.toml cannot say: extension modules, and files from other folders.

Each module ``*_cy.py`` is compiled with Cython, if there is a compiler. Without one the package is built as
``py3-none-any``, and those modules run interpreted. Two variables change that:

SQLALCHEMY_POOL_EXPORTER_REQUIRE_EXTENSION=1  the build fails if the modules cannot be compiled
SQLALCHEMY_POOL_EXPORTER_DISABLE_EXTENSION=1  nothing is compiled
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

try:
    import Cython
    from Cython.Build import cythonize
except ImportError:
    Cython = None

NAME = "sqlalchemy_pool_exporter"
SOURCES = Path("exporter")
MODULES = sorted(SOURCES.rglob("*_cy.py"))
# File of the repository → file in the package, where bundled.py finds it.
BUNDLED = {
    "config/alerts.yml": "bundled/alerts.yml",
    "config/exporter.yaml": "bundled/exporter.yaml",
    "config/prometheus/rules/opentelemetry.rules.yml": "bundled/opentelemetry.rules.yml",
    "config/thresholds.json": "bundled/thresholds.json",
    "dashboards/database.json": "bundled/dashboards/database.json",
    "dashboards/fleet.json": "bundled/dashboards/fleet.json",
    "dashboards/overview.json": "bundled/dashboards/overview.json",
    "dashboards/pool.json": "bundled/dashboards/pool.json",
}
DIRECTIVES = {"language_level": "3", "freethreading_compatible": True}
OPTIONS = [] if os.name == "nt" else ["-g0"]  # no symbols for a debugger; CFLAGS say how to optimize

# The same sources give the same wheel: the files in it have the earliest time that a ZIP archive can have, and modes
# that do not depend on the builder's umask.
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")
os.umask(0o022)


def is_set(action: str) -> bool:
    """Return whether the variable that requires or disables the extension is set."""
    return os.environ.get(f"SQLALCHEMY_POOL_EXPORTER_{action}_EXTENSION", "") not in {"", "0"}


def obstacle() -> str:
    """Return why nothing is compiled, whether there is a compiler or not; an empty text if nothing is in the way."""
    if is_set("DISABLE"):
        return "that is disabled"
    if platform.python_implementation() != "CPython":
        return f"this is {platform.python_implementation()}, not CPython"
    if Cython is None:
        return "Cython is not installed"
    return ""


def report(reason: str) -> None:
    """Say in one line that the wheel is of pure Python, unless that is wanted; fail if it may not be."""
    if is_set("REQUIRE"):
        raise SystemExit(f"{NAME}: the hot path must be compiled and cannot be: {reason}")
    if not is_set("DISABLE"):
        sys.stderr.write(f"{NAME}: the hot path is not compiled and will run interpreted: {reason}\n")


class BuildPython(build_py):
    """Copies the bundled files, too, and removes what an earlier build has left."""

    def run(self) -> None:
        """Copy all files of the package."""
        if OBSTACLE:
            report(OBSTACLE)
        super().run()
        if self.editable_mode:
            return
        for source, target in self.bundled.items():
            self.mkpath(str(Path(target).parent))
            shutil.copyfile(source, target)
        extensions: Any = self.get_finalized_command("build_ext")
        expected = set(map(Path, [*self.get_outputs(include_bytecode=False), *extensions.get_outputs()]))
        for path in Path(self.build_lib).rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                if path not in expected:
                    path.unlink()

    @property
    def bundled(self) -> dict[str, str]:
        """The bundled files: sources and targets."""
        return {source: str(Path(self.build_lib, NAME, target)) for source, target in BUNDLED.items()}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:  # noqa: FBT001, FBT002 - the signature of the base
        """Return the files that are made."""
        return [*super().get_outputs(include_bytecode), *self.bundled.values()]


class BuildExtensions(build_ext):
    """Compiles all modules, or none."""

    def run(self) -> None:
        """Compile; if that is not possible, go on with a wheel of pure Python."""
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            report(str(error))
            for path in map(Path, self.get_outputs()):
                path.unlink(missing_ok=True)
            self.extensions = []
            self.distribution.ext_modules = []
            wheel: Any = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True

    def build_extensions(self) -> None:
        """Translate and compile what has changed since the last build."""
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        stamp, sources = folder / "sources.sha256", fingerprint()
        if not stamp.exists() or stamp.read_text() != sources:
            self.force = True
            stamp.unlink(missing_ok=True)
        options = {"build_dir": str(folder), "compiler_directives": DIRECTIVES, "force": bool(self.force)}
        translated = {each.name: each.sources for each in cythonize(self.extensions, quiet=True, **options)}
        for extension in self.extensions:
            extension.sources = translated[extension.name]
        self.parallel = True
        super().build_extensions()
        stamp.write_text(sources)


def fingerprint() -> str:
    """Return a hash of what the compiled modules are made from; times of files do not tell in a checkout."""
    digest = hashlib.sha256(f"{Cython.__version__} {os.environ.get('CFLAGS')}".encode())
    for path in [Path("setup.py"), *MODULES, *sorted(SOURCES.rglob("*.pxd"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


OBSTACLE = obstacle()
setup(
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
    ext_modules=[]
    if OBSTACLE
    else [
        Extension(
            ".".join(path.relative_to(SOURCES).with_suffix("").parts),
            [path.as_posix()],
            extra_compile_args=OPTIONS,
        )
        for path in MODULES
    ],
)
