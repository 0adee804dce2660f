# SPDX-License-Identifier: Apache-2.0
"""Which module may import which, and which libraries each entry point of the package may load.

The application and the sidecar are two processes that share a segment. So the packages of the two do not import each
other, and each process loads only the libraries that it uses.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import sqlalchemy_pool_exporter

PACKAGE: Final = "sqlalchemy_pool_exporter"
SOURCE: Final = Path(sqlalchemy_pool_exporter.__file__).parent

# Each package → the modules and packages of ours that it may import besides its own.
MAY_IMPORT: Final = {
    "alerting": {"bundled", "errors"},
    "recording": {"about", "errors", "exposition", "families", "metrics", "negotiation", "segment"},
    "segment": {"about", "errors", "metrics"},
    "sidecar": {"about", "errors", "exposition", "families", "metrics", "negotiation", "segment"},
}


def _modules() -> dict[str, Path]:
    """Return the dotted name of each module, without the package's own → its file; the package itself is ""."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the package that one of them imports anywhere in its source.

    Imports inside a function and below ``if TYPE_CHECKING`` count too: they couple two modules just as much.
    """
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                above = [part for part in parents if part]
                base = [PACKAGE, *above[: len(above) - node.level + 1], *base]
            named = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        found |= {_module_of(each, modules) for each in named if each.split(".")[0] == PACKAGE}
    return found - {name}


def _module_of(dotted: str, modules: dict[str, Path]) -> str:
    """Return the module that a dotted name belongs to: the name itself, or the module that defines it."""
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts)


def _all_imports() -> dict[str, set[str]]:
    modules = _modules()
    return {name: _imports(name, path, modules) for name, path in modules.items()}


def test_every_module_is_read() -> None:
    """The package's modules are found and most import another, so the tests below look at something."""
    imports = _all_imports()
    assert {"", "cli", "segment.block", "recording.instrument", "sidecar.web.app"} <= imports.keys()
    assert "metrics" in imports["segment.block"]  # absolute
    assert "sidecar.config" in imports["cli"]  # relative, inside a function
    assert "recording.instrument" in imports[""]  # for type checkers only


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_direction_of_imports(package: str) -> None:
    """A package imports its own modules and those that the table allows, and no other of ours."""
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        f"{name} imports {imported or PACKAGE}"
        for name, all_imported in _all_imports().items()
        if name.split(".")[0] == package
        for imported in all_imported
        if imported.split(".")[0] not in allowed
    }
    assert not wrong


def test_every_package_has_a_direction() -> None:
    """A new package needs a line in the table."""
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == MAY_IMPORT.keys()


def test_no_cycle_between_modules() -> None:
    """No module imports itself by way of others, imports for type checkers included.

    ``from package import module`` imports the module and not the package, so the public names, which the package
    imports for type checkers, make no cycle.
    """
    try:
        TopologicalSorter(_all_imports()).prepare()
    except CycleError as error:
        pytest.fail("cycle of imports: " + " <- ".join(error.args[1]))


# -- which libraries are loaded

# The names under which a library appears in sys.modules, its dependencies included. Extensions of other libraries may
# add names of their own ("_cython_3_1_4", "cython_runtime"), which say nothing and are left out.
YAML: Final = {"yaml", "_yaml"}
AIOHTTP: Final = {
    "aiohappyeyeballs", "aiohttp", "aiosignal", "attr", "frozenlist", "idna", "multidict", "propcache",
    "typing_extensions", "yarl",
}  # fmt: skip
PYDANTIC: Final = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
PROMETHEUS: Final = {"prometheus_client"}
SQLALCHEMY: Final = {"greenlet", "sqlalchemy", "typing_extensions"}
# check-config builds the objects that will be used, so it may load the driver and the hashes of passwords.
PROVEN: Final = YAML | PYDANTIC | {"asyncpg", "bcrypt"}

_CLI: Final = "from sqlalchemy_pool_exporter.cli import main; sys.exit(main({!r}))"

# Entry point → (program, its exit status, libraries that it may load). A check of health finds no exporter.
MAY_LOAD: Final[dict[str, tuple[str, int, set[str]]]] = {
    "the package": ("import sqlalchemy_pool_exporter", 0, set()),
    "the command line": ("import sqlalchemy_pool_exporter.cli", 0, set()),
    "the parser": (_CLI.format(["--help"]), 0, set()),
    "healthcheck": (_CLI.format(["healthcheck", "--listen-address", "127.0.0.1:1"]), 1, set()),
    "healthcheck with a file": (
        _CLI.format(["healthcheck", "--listen-address", "127.0.0.1:1", "--config", "exporter.yaml"]),
        1,
        YAML,
    ),
    "rules": (_CLI.format(["rules", "--out", "rules"]), 0, YAML),
    "dashboards": (_CLI.format(["dashboards", "--out", "dashboards"]), 0, set()),
    "check-config": (_CLI.format(["check-config", "--config", "exporter.yaml"]), 0, PROVEN),
    "serve": ("import sqlalchemy_pool_exporter.sidecar.main", 0, PROVEN | AIOHTTP | PROMETHEUS),
    "instrument": ("from sqlalchemy_pool_exporter import instrument", 0, SQLALCHEMY | PROMETHEUS),
}

_LIST: Final = """
import atexit, sys
before = set(sys.modules)
@atexit.register
def write():
    with open("loaded", "w") as file:
        file.write(" ".join({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
_DATABASE: Final = "databases: [{name: orders, dsn: postgresql://localhost/orders}]\n"


def _loaded(program: str, status: int, directory: Path) -> set[str]:
    """Run a program in a directory and return the top-level modules that it loads, without the standard library."""
    (directory / "exporter.yaml").write_text(_DATABASE)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE_", "COV_", "SQLALCHEMY_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, "-c", _LIST + program],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == status, ended.stderr
    names = set((directory / "loaded").read_text().split()) - {PACKAGE} - set(sys.stdlib_module_names)
    return {name for name in names if not name.startswith(("_cython", "cython_", "_sysconfigdata"))}


@pytest.mark.parametrize("entry", MAY_LOAD)
def test_what_may_be_loaded(entry: str, tmp_path: Path) -> None:
    """Each entry point loads no library but those that the table names."""
    program, status, allowed = MAY_LOAD[entry]
    assert not _loaded(program, status, tmp_path) - allowed


def test_sqlalchemy_is_the_applications() -> None:
    """Of the table's entries only `instrument` may load SQLAlchemy, and only `serve` aiohttp."""
    assert [entry for entry, (_, _, allowed) in MAY_LOAD.items() if "sqlalchemy" in allowed] == ["instrument"]
    assert [entry for entry, (_, _, allowed) in MAY_LOAD.items() if "aiohttp" in allowed] == ["serve"]
