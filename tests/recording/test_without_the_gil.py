# SPDX-License-Identifier: Apache-2.0
"""Counts are exact where threads run at the same time: on an interpreter without the GIL.

Such an interpreter is named by the variable ``PYTHON_FREETHREADED``, or is found on the PATH; it needs no packages of
its own. On an interpreter with the GIL the same tests run as they are, and with the locks that a free-threaded
interpreter gets, interpreted and compiled. There a trace function also lets threads interrupt each other between any
two bytecodes, as they do without the GIL.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter import locked_source, straight_lines
from sqlalchemy_pool_exporter.about import hot_path
from sqlalchemy_pool_exporter.recording import checkout_cy  # noqa: F401 - whose build is asked for
from tests.support.builds import build_and_unpack
from tests.support.many_threads import SCENES
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = ROOT / "exporter" / "sqlalchemy_pool_exporter"
# Where this interpreter finds packages; another one has a standard library of its own.
PACKAGES = [
    each
    for each in sys.path
    if Path(each).suffix != ".zip"
    and Path(sysconfig.get_path("stdlib")) not in {Path(each), Path(each).parent}
]


def free_threaded() -> str:
    """Return an interpreter without the GIL; an empty text if there is none."""
    named = os.environ.get("PYTHON_FREETHREADED", "")
    if named:
        return named
    for name in ("python3.15t", "python3.14t"):
        # What is found may not run: pyenv puts a file there for each interpreter that is not active, too.
        if (
            shutil.which(name)
            and not subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode
        ):
            return name
    return ""


FREE_THREADED = free_threaded()

# Marked as ``newest``: what is with the locks. The oldest dependencies run on no interpreter that gets them.

needs_free_threading = pytest.mark.skipif(
    not FREE_THREADED,
    reason="no interpreter without the GIL: PYTHON_FREETHREADED names none, and none is on the PATH",
)


def played(
    scene: str,
    turns: int,
    *,
    python: str = sys.executable,
    locks: bool = False,
    interrupted: float = 0.0,
    package: Path | None = None,
) -> dict[str, Any]:
    """Return what a program in an interpreter says of a scene. ``package`` is where it finds the exporter."""
    first = [] if package is None else [str(package)]
    done = subprocess.run(
        [python, "-m", "tests.support.many_threads", scene, str(turns), str(interrupted)],
        capture_output=True,
        check=False,
        text=True,
        timeout=900,
        env={
            **os.environ,
            straight_lines.SWITCH: str(int(locks)),
            "PYTHONPATH": os.pathsep.join((*first, str(ROOT), *PACKAGES)),
        },
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def assert_exact(said: dict[str, Any]) -> None:
    """Assert that every count is that of the threads, that none went back, and that the tables are right."""
    assert said["expected"] == said["counted"], said
    assert said["went_back"] == []
    assert said["wrong"] == []
    assert said["reads"] > 1
    # What was compiled without the lock in C has no lock, so its source is loaded instead.
    assert not said["locks"] or said["hot_path"] == (
        "compiled" if said["lock"] == "LineLock" else "interpreted"
    )


@pytest.mark.parametrize("locks", [False, pytest.param(True, marks=pytest.mark.newest)])
@pytest.mark.parametrize("scene", SCENES)
def test_eight_threads_with_the_gil(scene: str, locks: bool) -> None:
    """The counters of eight busy threads equal what the threads did, with the locks and without them."""
    said = played(scene, 1_000, locks=locks)
    assert (locks or straight_lines.are_interruptible()) == said["locks"]
    assert_exact(said)


@pytest.mark.soak
@pytest.mark.parametrize("locks", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_800000_checkouts_with_the_gil(scene: str, locks: bool) -> None:
    """The same with 100,000 checkouts in each thread."""
    assert_exact(played(scene, 100_000, locks=locks))


@pytest.fixture(scope="module")
def compiled_with_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a build for this interpreter is, compiled as for one without the GIL."""
    return build_and_unpack(tmp_path_factory.mktemp("locks"), **{straight_lines.SWITCH: "1"})


@pytest.mark.soak
@pytest.mark.requires("gcc")
@pytest.mark.skipif(sys.version_info < (3, 13), reason="CPython has the lock in C since 3.13")
@pytest.mark.parametrize("scene", SCENES)
def test_compiled_with_locks_and_the_gil(scene: str, compiled_with_locks: Path) -> None:
    """The same with what a free-threaded interpreter gets compiled."""
    said = played(scene, 20_000, locks=True, package=compiled_with_locks)
    assert said["hot_path"] == "compiled"
    assert_exact(said)


@pytest.fixture(scope="module")
def compiled_without_the_gil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a build for the free-threaded interpreter is. It takes setuptools and Cython of this one."""
    packages = os.pathsep.join(PACKAGES)
    return build_and_unpack(tmp_path_factory.mktemp("free"), python=FREE_THREADED, PYTHONPATH=packages)


@needs_free_threading
@pytest.mark.parametrize("scene", SCENES)
def test_800000_checkouts_without_the_gil(scene: str) -> None:
    """The same on a free-threaded interpreter, which really runs the threads at once."""
    said = played(scene, 100_000, python=FREE_THREADED)
    assert (said["gil"], said["locks"], said["hot_path"]) == (False, True, "interpreted")
    assert_exact(said)


@needs_free_threading
@pytest.mark.requires("gcc")
@pytest.mark.parametrize("scene", SCENES)
def test_800000_checkouts_compiled_without_the_gil(scene: str, compiled_without_the_gil: Path) -> None:
    """The same, compiled for it."""
    said = played(scene, 100_000, python=FREE_THREADED, package=compiled_without_the_gil)
    assert (said["gil"], said["locks"], said["hot_path"]) == (False, True, "compiled")
    assert_exact(said)


# -- bytecode by bytecode


@pytest.mark.newest
@pytest.mark.skipif(straight_lines.are_interruptible(), reason="this interpreter always has the locks")
@pytest.mark.parametrize("scene", SCENES)
def test_interrupted_between_bytecodes(scene: str) -> None:
    """If threads interrupt each other between any two bytecodes, the locks keep every count and every slot."""
    assert_exact(played(scene, 150, locks=True, interrupted=0.02))


@pytest.mark.soak
@pytest.mark.skipif(straight_lines.are_interruptible(), reason="this interpreter always has the locks")
@pytest.mark.parametrize("scene", SCENES)
def test_interrupted_more_often_between_bytecodes(scene: str) -> None:
    """The same with ten times as many interruptions, and more checkouts."""
    assert_exact(played(scene, 1_000, locks=True, interrupted=0.2))


@pytest.mark.skipif(straight_lines.are_interruptible(), reason="this interpreter always has the locks")
@pytest.mark.skipif(hot_path() == "compiled", reason="a trace function does not interrupt compiled code")
def test_interrupted_without_the_locks() -> None:
    """Without the locks some counts are lost then: the two tests above see what the locks are for."""
    said = played("one-pool", 150, interrupted=0.02)
    assert said["expected"] != said["counted"]


# -- what is locked

RECORDING = sorted(
    path
    for name in ("recording", "segment")
    for path in (PACKAGE / name).glob("*.py")
    if "# straight line" in path.read_text()
)


def locks_of(tree: ast.AST) -> Iterator[ast.Try]:
    """Yield the statements that hold the lock."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Try)
            and node.finalbody
            and ast.unparse(node.finalbody[-1]).endswith(".released")
        ):
            yield node


@pytest.mark.parametrize("path", RECORDING, ids=lambda path: path.stem)
def test_each_straight_line_holds_the_lock(path: Path) -> None:
    """Each stretch between the two comments holds the lock to its end, and runs on the same lines."""
    source = path.read_bytes()
    tree = locked_source.locked(source)
    compile(tree, str(path), "exec")
    stretches = locked_source.stretches(source.decode())
    assert stretches
    found = list(locks_of(tree))
    for stretch in stretches:
        (lock,) = [one for one in found if stretch.first < (one.body[-1].end_lineno or 0) < stretch.last]
        assert ast.unparse(lock.body[-1])
        outside = [
            statement.lineno
            for statement in ast.walk(ast.parse(source))
            if isinstance(statement, ast.stmt)
            and stretch.first < statement.lineno < stretch.last
            and not lock.body[0].lineno <= statement.lineno <= (lock.body[-1].end_lineno or 0)
        ]
        assert outside == []


@pytest.mark.parametrize("path", RECORDING, ids=lambda path: path.stem)
def test_nothing_is_called_with_the_lock(path: Path) -> None:
    """What holds the lock calls nothing, so that it never waits. The exceptions map memory, or are of C."""
    tree = locked_source.locked(path.read_bytes())
    called = {
        ast.unparse(node.func)
        for lock in locks_of(tree)
        for statement in lock.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    }
    assert called <= {"c_mmap", "doubles"}


ALL_OF_RECORDING = sorted((PACKAGE / "recording").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", ALL_OF_RECORDING, ids=lambda path: path.stem)
def test_a_place_in_the_table_is_used_with_the_lock(path: Path) -> None:
    """Where a row is, is read together with its table: another thread can release the row, which changes both."""
    tree = locked_source.locked(path.read_bytes())
    with_lock = {
        id(node) for lock in locks_of(tree) for statement in lock.body for node in ast.walk(statement)
    }
    pairs = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and re.search(r"(\w+)(\.table)?\[\1\.(at|held_at)\b|(\w+)\.table\[\4\.", ast.unparse(node))
    ]
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in pairs if id(node) not in with_lock] == []


COMPILED = [PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in locked_source.COMPILED]


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_memory_is_only_used_with_the_lock(path: Path) -> None:
    """Compiled, what reads or stores a double has the lock: another thread could give the memory to another pool.

    A pointer to doubles is taken in the same stretch, or belongs to a view that the function keeps.
    """
    tree = ast.parse(locked_source.locked_for_cython(path.read_bytes()))
    pointers = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation) == "cython.p_double"
    }
    with_lock = {
        id(node)
        for lock in ast.walk(tree)
        if isinstance(lock, ast.Try) and list(map(ast.unparse, lock.finalbody)) == ["unlock_line()"]
        for statement in lock.body
        for node in ast.walk(statement)
    }
    used = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and ast.unparse(node.value) in pointers)
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "doubles")
    ]
    assert used or path.stem == "origins_cy"
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in used if id(node) not in with_lock] == []


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_what_is_compiled_has_no_type_of_python(path: Path) -> None:
    """Of classes, lists and dictionaries Cython would read the memory as it is with the GIL."""
    tree = ast.parse(locked_source.locked_for_cython(path.read_bytes()))
    annotations = [
        node.annotation
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation
    ]
    annotations += [
        node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.returns
    ]
    assert annotations
    assert [text for text in map(ast.unparse, annotations) if not text.startswith("cython.")] == []
    imported = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cython.cimports.")
    }
    package = "cython.cimports.sqlalchemy_pool_exporter"
    assert imported == {f"{package}.c_api", f"{package}.line_lock"}


def test_what_is_locked() -> None:
    """Beside straight lines: what reads for them just before, statements that share a line, what is added and stored.

    A free slot is taken at the other end of its list than it is given back, which is without a lock.
    """
    source = b'''"""Docstring."""
from __future__ import annotations
import math
def act(self, x, block):
    y = f(x)
    block = self.block
    # straight line
    block[0] = x
    if x:
        return block
    # end of straight line
    a = free[-1]; del free[-1]
    self.count += 1.0
    self.count += f(x)
    x += 1
    doubles(block)[2] += 1.0
    self.table[x] = y
    self.table[x] = f(x)
    if x:
        self.free.append(x)
    try:
        pass
    except ValueError:
        block[1] -= x
'''
    tree = locked_source.locked(source)
    found = {"; ".join(" ".join(ast.unparse(one).split()) for one in lock.body) for lock in locks_of(tree)}
    assert "self.free.append(x)" in ast.unparse(tree)
    assert found == {
        "block = self.block; block[0] = x; if x: return block",
        "a = free[0]; del free[0]",
        "self.count += 1.0",
        "doubles(block)[2] += 1.0",
        "self.table[x] = y",
        "block[1] -= x",
    }
