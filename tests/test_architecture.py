# SPDX-License-Identifier: Apache-2.0
"""The architecture: which packages may import which, no import cycles, and what each entry point loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from typing import TYPE_CHECKING

import pytest

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAME = "sqlalchemy_pool_exporter"
PACKAGE = ROOT / "exporter" / NAME
Imports = dict[str, set[str]]  # module → the modules it imports, both relative to NAME

# What no process owns: modules and a package at the top of the package that every process may import.
SHARED = {
    "about",
    "address",
    "audit",
    "builder_cy",
    "conventions",
    "cython",
    "environment",
    "errors",
    "exposition",
    "families",
    "fleet_collector",
    "held_connections",
    "metrics",
    "negotiation",
    "pausing",
    "series_cy",
    "states_cy",
    "straight_lines",
}
# Subpackage, or module at the top of the package → what it may import besides itself. The modules of SHARED may import
# each other and ``segment``, without a cycle.
MAY_IMPORT = {
    **dict.fromkeys(SHARED, SHARED | {"segment"}),
    "straight_lines": {"line_lock", "locked_source"},  # where they are needed
    "locked_source": set(),
    "segment": {"about", "cython", "environment", "errors", "metrics", "pausing", "straight_lines"},
    "board": {"about", "audit", "held_connections", "pausing", "segment"},
    "recording": SHARED | {"board", "segment"},
    "sidecar": SHARED | {"board", "segment"},
    "launch": {"address", "environment", "errors", "recording"},
    "advise": SHARED | {"board", "segment", "top"},
    "top": {"audit", "board", "environment", "errors", "segment"},
    "bundled": {"errors"},
    "manual": {"environment"},
    "alerting": {"bundled", "errors"},
    # The entry points: the public names, and the commands.
    "": {"errors", "recording", "straight_lines"},
    "cli": SHARED | {"advise", "alerting", "bundled", "launch", "manual", "sidecar", "top"},
    "__main__": {"cli"},
}
# Functions that import a module by its name as a text, which the checks of this file do not follow.
DYNAMIC = {"import_module", "__import__"}


# -- what the source imports


def read_imports(package: Path = PACKAGE) -> Imports:
    """Map each module to the modules that it imports, read from the source; imports under TYPE_CHECKING count."""
    files = {_module_name(path, package): path for path in package.rglob("*.py")}
    return {name: set(_imported(path, name, files)) for name, path in files.items()}


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, module: str, known: Mapping[str, Path]) -> Iterator[str]:
    is_package = path.name == "__init__.py"
    full = f"{NAME}.{module}".rstrip(".")
    parent = full if is_package else full.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), parent)
            # `from package import module` imports that module; `from module import name` imports only `module`.
            names = [
                f"{base}.{alias.name}" if _relative(f"{base}.{alias.name}") in known else base
                for alias in node.names
            ]
        else:
            continue
        yield from (found for name in names if (found := _relative(name)) is not None)


def _relative(name: str) -> str | None:
    """Return a module's name relative to the package, "" for the package itself, None for a module outside it."""
    return name.removeprefix(NAME).removeprefix(".") if name == NAME or name.startswith(f"{NAME}.") else None


def direction_faults(imports: Imports) -> list[str]:
    """Return the imports that the architecture forbids."""
    return [
        f"{module} imports {imported}"
        for module, all_imported in sorted(imports.items())
        for imported in sorted(all_imported)
        if not _may_import(module, imported)
    ]


def _may_import(module: str, imported: str) -> bool:
    package, target = module.partition(".")[0], imported.partition(".")[0]
    return package == target or target in MAY_IMPORT[package]


def dynamic_imports(package: Path = PACKAGE) -> set[str]:
    """Return the modules that name a function which imports by a text."""
    return {
        _module_name(path, package)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if {getattr(node, name, None) for name in ("id", "attr", "name")} & DYNAMIC
    }


def cycle(imports: Imports) -> list[str] | None:
    """Return an import cycle, or None; the implicit import of a module's own package does not count."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def test_direction_of_imports() -> None:
    """No package imports a package that the architecture forbids to it."""
    imports = read_imports()
    assert MAY_IMPORT.keys() == {module.partition(".")[0] for module in imports}
    assert [] == direction_faults(imports)


def test_no_dynamic_imports() -> None:
    """Only the package itself, whose public names are loaded on their first use, imports by a text."""
    assert {""} == dynamic_imports()


def test_no_cycles() -> None:
    """No module imports itself through other modules, not even under TYPE_CHECKING."""
    assert cycle(read_imports()) is None


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("segment/file.py", "import sqlalchemy_pool_exporter.families", "segment.file imports families"),
        ("segment/file.py", "from ..recording import hooks", "segment.file imports recording.hooks"),
        (
            "sidecar/web/app.py",
            "def f():\n    from sqlalchemy_pool_exporter.recording.hooks import Hooks",
            "sidecar.web.app imports recording.hooks",
        ),
        (
            "recording/hooks.py",
            "if TYPE_CHECKING:\n    from sqlalchemy_pool_exporter.sidecar.web import app",
            "recording.hooks imports sidecar.web.app",
        ),
        ("alerting/rules.py", "from ..segment import file", "alerting.rules imports segment.file"),
        ("families.py", "from .recording.hooks import Hooks", "families imports recording.hooks"),
        ("families.py", "from .cli import main", "families imports cli"),
        # A public name of the package is loaded from ``recording`` on its first use.
        ("sidecar/web/app.py", "from sqlalchemy_pool_exporter import instrument", "sidecar.web.app imports "),
        ("segment/file.py", "from .. import serve", "segment.file imports "),
        ("recording/hooks.py", "import sqlalchemy_pool_exporter", "recording.hooks imports "),
        # The command line imports the sidecar.
        ("recording/hooks.py", "from ..cli import main", "recording.hooks imports cli"),
        ("sidecar/web/app.py", "from ...alerting import rules", "sidecar.web.app imports alerting.rules"),
    ],
)
def test_wrong_directions_are_found(path: str, source: str, fault: str, tmp_path: Path) -> None:
    """A forbidden import is found in every syntax: absolute, relative, inside a function, under TYPE_CHECKING."""
    files = (
        "cli.py",
        "families.py",
        "segment/file.py",
        "recording/hooks.py",
        "sidecar/web/app.py",
        "alerting/rules.py",
    )
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source if name == path else "import json\n")
    assert [fault] == direction_faults(read_imports(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "from importlib import import_module",
        "from importlib import import_module as load",
        "import importlib\ndef f():\n    importlib.import_module('.recording', 'sqlalchemy_pool_exporter')",
        "__import__('sqlalchemy_pool_exporter.recording')",
    ],
)
def test_dynamic_imports_are_found(source: str, tmp_path: Path) -> None:
    """An import by a text is found in every syntax."""
    (tmp_path / "families.py").write_text(source)
    assert {"families"} == dynamic_imports(tmp_path)


def test_cycles_are_found(tmp_path: Path) -> None:
    """A cycle of two modules is found even if one of its imports is under TYPE_CHECKING."""
    (tmp_path / "one.py").write_text("from .two import b\n")
    (tmp_path / "two.py").write_text("if TYPE_CHECKING:\n    from . import one\n")
    assert {"one", "two"} == set(cycle(read_imports(tmp_path)) or ())


# -- what is loaded

# What takes most of the time or memory of a start; an entry point that may load one of these does load it.
HEAVY = {
    "aiohttp",
    "asyncio",
    "asyncpg",
    "bcrypt",
    "logging",
    "prometheus_client",
    "pydantic",
    "sqlalchemy",
    "yaml",
}
SQLALCHEMY = {"sqlalchemy", "asyncio", "greenlet", "logging", "typing_extensions"}
PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
AIOHTTP = {
    "aiohappyeyeballs",
    "aiohttp",
    "aiosignal",
    "asyncio",
    "attr",
    "attrs",
    "frozenlist",
    "idna",
    "logging",
    "multidict",
    "propcache",
    "typing_extensions",
    "yarl",
}
COMMAND = "import sys; from sqlalchemy_pool_exporter.cli import main; sys.argv[1:] = {}; main()"
EXAMPLE = str(ROOT / "config" / "exporter.yaml")
NOBODY_LISTENS = "127.0.0.1:1"

# Entry point → what it runs, and what it may load: third-party packages, and of the standard library what is in HEAVY.
# `healthcheck` runs every 30 seconds in a container.
ENTRY_POINTS: dict[str, tuple[str, set[str]]] = {
    "the package": ("import sqlalchemy_pool_exporter", set()),
    "--help": (COMMAND.format(["--help"]), set()),
    "--version": (COMMAND.format(["--version"]), set()),
    "serve --help": (COMMAND.format(["serve", "--help"]), set()),
    "healthcheck": (COMMAND.format(["healthcheck", "--listen-address", NOBODY_LISTENS]), set()),
    "healthcheck of a file": (
        COMMAND.format(["healthcheck", "--listen-address", NOBODY_LISTENS, "--config", EXAMPLE]),
        {"yaml"},
    ),
    "rules": (COMMAND.format(["rules", "--out", "."]), set()),
    "dashboards": (COMMAND.format(["dashboards", "--out", "."]), set()),
    "top --once": (COMMAND.format(["top", "--once", "--directory", "."]), {"logging"}),
    "top --once of a URL": (COMMAND.format(["top", "--once", "--url", NOBODY_LISTENS]), {"logging"}),
    "advise of a directory": (COMMAND.format(["advise", "."]), {"logging", "prometheus_client"}),
    "check-config": (COMMAND.format(["check-config", "--config", EXAMPLE]), {"logging", "yaml", *PYDANTIC}),
    "serve": (
        "import sqlalchemy_pool_exporter.sidecar.main",
        {"asyncpg", "bcrypt", "prometheus_client", "yaml", *PYDANTIC, *AIOHTTP},
    ),
    "instrument": ("from sqlalchemy_pool_exporter import instrument", {"prometheus_client", *SQLALCHEMY}),
}


def loaded(program: str, directory: Path) -> set[str]:
    """Run a program in a new Python process; return the packages it has loaded at exit."""
    report = f"""
import atexit, json, sys
before = set(sys.modules)
atexit.register(lambda: print("\\n" + json.dumps(sorted(set(sys.modules) - before))))
{program}
"""
    done = subprocess.run(
        [sys.executable, "-c", report], cwd=directory, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    packages = {module.partition(".")[0] for module in modules}
    # A Cython extension registers cython_runtime as a top-level module.
    own = {NAME, "cython_runtime"} | sys.stdlib_module_names - HEAVY
    return {name for name in packages - own if not name.startswith("_")}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_loaded_packages(entry_point: str, tmp_path: Path) -> None:
    """An entry point loads only the packages that it may load."""
    program, allowed = ENTRY_POINTS[entry_point]
    found = loaded(program, tmp_path)
    assert set() == found - allowed
    assert HEAVY & allowed == HEAVY & found


def test_loaded_packages_are_found(tmp_path: Path) -> None:
    """A package that is imported inside a function counts as loaded."""
    assert "sqlalchemy" in loaded("def f():\n    import sqlalchemy\nf()", tmp_path)
