# SPDX-License-Identifier: Apache-2.0
"""The part of the build that pyproject.toml cannot say: extension modules, and files from other folders.

Each module ``*_cy.py`` is compiled with Cython, if there is a compiler. Without one the package is built as
``py3-none-any``, and those modules run interpreted. Two variables change that:

SQLALCHEMY_POOL_EXPORTER_REQUIRE_EXTENSION=1  the build fails if the modules cannot be compiled
SQLALCHEMY_POOL_EXPORTER_DISABLE_EXTENSION=1  nothing is compiled

For an interpreter without the GIL, those of the hot path are compiled with locks; ``locked_source`` says which, and
why. A third variable, SQLALCHEMY_POOL_EXPORTER_LOCKS=1, does so for one with the GIL, from CPython 3.13 on, for tests.
"""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import sys
import sysconfig
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
LOCK = Path(SOURCES, NAME, "line_lock.pyx")
LOCKED_SOURCE_FILE = Path(SOURCES, NAME, "locked_source.py")
DIRECTIVES = {"language_level": "3", "freethreading_compatible": True}
OPTIONS = [] if os.name == "nt" else ["-g0"]  # no symbols for a debugger; CFLAGS say how to optimize

# The same sources give the same wheel: the files in it have the earliest time that a ZIP archive can have, and modes
# that do not depend on the builder's umask.
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")
os.umask(0o022)


def is_set(name: str) -> bool:
    """Return whether a variable of the build is set."""
    return os.environ.get(f"SQLALCHEMY_POOL_EXPORTER_{name}", "") not in {"", "0"}


def obstacle() -> str:
    """Return why nothing is compiled, whether there is a compiler or not; an empty text if nothing is in the way."""
    if is_set("DISABLE_EXTENSION"):
        return "that is disabled"
    if platform.python_implementation() != "CPython":
        return f"this is {platform.python_implementation()}, not CPython"
    if Cython is None:
        return "Cython is not installed"
    return ""


def report(reason: str) -> None:
    """Say in one line that the wheel is of pure Python, unless that is wanted; fail if it may not be."""
    if is_set("REQUIRE_EXTENSION"):
        raise SystemExit(f"{NAME}: the hot path must be compiled and cannot be: {reason}")
    if not is_set("DISABLE_EXTENSION"):
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
        if self.inplace or self.editable_mode:
            self._forget_others()
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
        if HAS_LOCKS:
            self._lock_lines(folder / "locked")
        options = {"build_dir": str(folder), "compiler_directives": DIRECTIVES, "force": bool(self.force)}
        options["include_path"] = [str(SOURCES)]
        translated = {each.name: each.sources for each in cythonize(self.extensions, quiet=True, **options)}
        for extension in self.extensions:
            extension.sources = translated[extension.name]
        self.parallel = True
        super().build_extensions()
        stamp.write_text(sources)

    def _forget_others(self) -> None:
        """Remove what an earlier build with locks, or without, has left in the sources: the two do not go together."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        expected = {extension.name for extension in self.extensions}
        for path in SOURCES.rglob(f"*{suffix}"):
            if module_of(path.with_name(path.name.removesuffix(suffix) + ".so")) not in expected:
                path.unlink()

    def _lock_lines(self, folder: Path) -> None:
        """Compile what has locks in place of the sources of the hot path."""
        for extension in self.extensions:
            (source,) = map(Path, extension.sources)
            if source != LOCK:
                target = folder / source
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(LOCKED_SOURCE["locked_for_cython"](source.read_bytes()))
                extension.sources = [str(target)]


def fingerprint() -> str:
    """Return a hash of what the compiled modules are made from; times of files do not tell in a checkout."""
    digest = hashlib.sha256(f"{Cython.__version__} {os.environ.get('CFLAGS')} {HAS_LOCKS}".encode())
    for path in [Path("setup.py"), LOCKED_SOURCE_FILE, LOCK, *MODULES, *sorted(SOURCES.rglob("*.pxd"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled_modules() -> list[Path]:
    """Return the files of the modules that are compiled."""
    if HAS_LOCKS:
        return [LOCK, *(path for path in MODULES if module_of(path) in LOCKED_SOURCE["COMPILED"])]
    return MODULES


def module_of(path: Path) -> str:
    """Return the name of the module in a file."""
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts)


# Not imported: the package lacks its dependencies here.
LOCKED_SOURCE = runpy.run_path(str(LOCKED_SOURCE_FILE), run_name=f"{NAME}.locked_source")
HAS_LOCKS = bool(sysconfig.get_config_var("Py_GIL_DISABLED")) or is_set("LOCKS")
OBSTACLE = obstacle()
setup(
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
    ext_modules=[]
    if OBSTACLE
    else [
        Extension(
            module_of(path),
            [path.as_posix()],
            define_macros=[("SPE_LOCKS", "1")] if HAS_LOCKS else [],
            extra_compile_args=OPTIONS,
        )
        for path in compiled_modules()
    ],
)
