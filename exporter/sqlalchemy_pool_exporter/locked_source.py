# SPDX-License-Identifier: Apache-2.0
"""Puts a lock around each straight line of a module, see ``straight_lines``: when it is loaded, or compiled.

What is locked:

* each stretch between ``# straight line`` and ``# end of straight line``, and the statements just above it that call
  nothing: they read what it depends on;
* statements that share a line;
* each other ``+=`` on an element or an attribute, unless it calls something;
* in modules that have straight lines, each other assignment to an element, unless it calls something: a straight line
  may have looked at the element just before.

What gives a slot back calls ``list.append()``, which is atomic, and nothing is called with the lock. Without it, the
thread that takes a slot could read the last one, and delete the one that was given back meanwhile. So here it takes the
first one, which no appended one moves: ``free[-1]`` becomes ``free[0]``.

Where a module is loaded from its source, the lines keep their numbers, so a traceback and a debugger show the file as
it is.

A build for interpreters without the GIL compiles the modules of ``COMPILED``, with these locks. All others are loaded
from their source there: an object of a compiled class has its attributes in C, where nothing guards one that another
thread replaces while it is read. So the compiled modules take these objects as any other, by CPython's own functions,
and read the memory of a block only with the lock.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib.machinery import ExtensionFileLoader, PathFinder, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_PREFIX: Final = f"{__package__}."
# The packages that record.
_PACKAGES: Final = tuple(f"{__package__}.{name}." for name in ("recording", "segment"))

# The modules of the hot path, which a build for interpreters without the GIL compiles: they have functions, and no
# classes that others read.
COMPILED: Final = tuple(
    f"{__package__}.recording.{name}_cy" for name in ("checkin", "checkout", "origins", "ping")
)


class Lock(NamedTuple):
    """How a module acquires and releases the lock: statements."""

    names: str  # that import what the others use
    acquire: str
    release: str


# By attributes: ``straight_lines`` says why.
OF_PYTHON: Final = Lock(
    f"from {__package__}.straight_lines import LOCK as _STRAIGHT_LINE",
    "_STRAIGHT_LINE.acquired",
    "_STRAIGHT_LINE.released",
)
# Functions of C.
OF_C: Final = Lock(
    f"from cython.cimports.{__package__}.line_lock import lock_line, unlock_line",
    "lock_line()",
    "unlock_line()",
)

_MARK: Final = re.compile(r"\s*# (end of )?straight line")
# What can run other code or leave the statements before their end.
_LOUD: Final = (
    *(ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.Delete, ast.stmt, ast.comprehension),
    *(ast.FormattedValue, ast.Lambda),
)
_QUIET: Final = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If)


class Stretch(NamedTuple):
    """The lines of a straight line."""

    first: int  # the line of the comment
    last: int


# Mutable state: the modules that have the lock.
_locked: Final[set[str]] = set()


class _Loader(SourceFileLoader):
    """Loads a module from its source, never from bytecode: that is of the file as it is."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(locked(self.get_data(path)), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _locked.add(module.__name__)


class _Finder:
    """Finds the modules that record, as Python does; those that were not compiled with locks get that loader."""

    def __init__(self, *, are_compiled: bool) -> None:
        self._compiled = COMPILED if are_compiled else ()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        """Return the specification of a module; None for all others."""
        # And all that are compiled: the C interface of a compiled module is not there if its source is loaded.
        if not name.startswith(_PACKAGES) and not (name.startswith(_PREFIX) and name.endswith("_cy")):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None:
            return None
        if name in self._compiled and isinstance(spec.loader, ExtensionFileLoader):
            _locked.add(name)
            return spec
        # Beside a compiled module is its source.
        source = Path(spec.origin).with_name(f"{name.rpartition('.')[2]}.py")
        return (
            spec_from_file_location(name, source, loader=_Loader(name, str(source)))
            if source.exists()
            else None
        )


def install(*, are_compiled: bool) -> set[str]:
    """Load the modules that record with locks from now on; return the set that will have the names of those.

    Args:
        are_compiled: whether those of ``COMPILED`` were compiled with locks, if they are compiled.
    """
    sys.meta_path.insert(0, _Finder(are_compiled=are_compiled))
    return _locked


def locked_for_cython(source: bytes) -> str:
    """Return what Cython compiles in place of the source of a module: the same with locks, and without types of Python.

    A local variable that is declared as a list or a dictionary would be read by functions that other threads may not
    interrupt, and the classes of the package are interpreted there.
    """
    tree = _WithoutTypes().visit(locked(source, OF_C))
    directives = [line for line in decode_source(source).splitlines() if line.startswith("# cython:")]
    return "\n".join([*directives, ast.unparse(ast.fix_missing_locations(tree)), ""])


def locked(source: bytes, lock: Lock = OF_PYTHON) -> ast.Module:
    """Return the syntax tree of a module with its straight lines locked."""
    tree = ast.parse(source)
    _TakingTheFirst().visit(tree)
    _Locking(stretches(decode_source(source)), lock).visit(tree)
    (names,) = ast.parse(lock.names).body
    first = next(at for at, each in enumerate(tree.body) if not _comes_first(each))
    tree.body.insert(first, names)
    return ast.fix_missing_locations(tree)


def _comes_first(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) or (
        isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    )


def stretches(source: str) -> list[Stretch]:
    """Return the straight lines in a source."""
    marks = [number for number, line in enumerate(source.splitlines(), 1) if _MARK.match(line)]
    return [Stretch(first, last) for first, last in zip(marks[::2], marks[1::2], strict=True)]


class _TakingTheFirst(ast.NodeTransformer):
    """Lets what takes a free slot take the first one instead of the last one."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.Subscript:
        self.generic_visit(node)
        text = ast.unparse(node)
        if text == "free[-1]" or text.endswith(".free[-1]"):
            node.slice = ast.copy_location(ast.Constant(0), node.slice)
        return node


class _Locking(ast.NodeTransformer):
    """Locks the straight lines in the functions of a module."""

    def __init__(self, stretches: list[Stretch], lock: Lock) -> None:
        self._stretches = stretches
        self._lock = lock

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self._lock_in(node)
        return node

    def _lock_in(self, node: ast.AST) -> None:
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, self._locked(statements))
        for handler in getattr(node, "handlers", ()):
            self._lock_in(handler)

    def _locked(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        done: list[ast.stmt] = []
        rest = list(statements)
        while rest:
            stretch = next((one for one in self._stretches if one.first < rest[0].lineno < one.last), None)
            group = [rest.pop(0)]
            if stretch is not None:
                while rest and rest[0].lineno < stretch.last:
                    group.append(rest.pop(0))
                while done and _is_quiet(done[-1]):
                    group.insert(0, done.pop())
            else:
                while rest and rest[0].lineno == group[0].lineno:
                    group.append(rest.pop(0))
                if len(group) == 1 and not _adds(group[0]) and not (self._stretches and _stores(group[0])):
                    self._lock_in(group[0])
                    done += group
                    continue
            done += _with_lock(group, self._lock)
        return done


class _WithoutTypes(ast.NodeTransformer):
    """Leaves only the types of C in annotations, and imports no classes of C."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        module = node.module or ""
        return None if module.startswith("cython.cimports.") and module.endswith("_cy") else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = _of_c(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = _of_c(node.returns)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if _of_c(node.annotation) is not None:
            return node
        return ast.Pass() if node.value is None else ast.Assign([node.target], node.value)


def _of_c(annotation: ast.expr | None) -> ast.expr | None:
    is_of_c = annotation is not None and ast.unparse(annotation).startswith("cython.")
    return annotation if is_of_c else None


def _is_quiet(statement: ast.stmt) -> bool:
    return isinstance(statement, _QUIET) and not any(
        isinstance(node, _LOUD) and not isinstance(node, _QUIET) and not _is_of_cython(node)
        for node in ast.walk(statement)
    )


def _is_of_cython(node: ast.AST) -> bool:
    """Return whether a call only gives a compiled module the memory of a view."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "doubles"


def _adds(statement: ast.stmt) -> bool:
    """Return whether a statement adds to what other threads may change, and calls nothing."""
    return (
        isinstance(statement, ast.AugAssign)
        and not isinstance(statement.target, ast.Name)
        and _is_quiet(statement)
    )


def _stores(statement: ast.stmt) -> bool:
    """Return whether a statement assigns to an element, and calls nothing."""
    return (
        isinstance(statement, ast.Assign)
        and any(isinstance(target, ast.Subscript) for target in statement.targets)
        and _is_quiet(statement)
    )


def _with_lock(group: list[ast.stmt], lock: Lock) -> list[ast.stmt]:
    acquired, held = ast.parse(f"{lock.acquire}\ntry:\n    pass\nfinally:\n    {lock.release}").body
    assert isinstance(held, ast.Try)  # noqa: S101 - for the type checker
    for one in (acquired, held):
        _at(group[0], one)
    held.body = group
    return [acquired, held]


def _at(place: ast.stmt, new: ast.stmt) -> ast.stmt:
    """Let a new statement have the line of one in the source."""
    for node in ast.walk(new):
        if isinstance(node, ast.stmt | ast.expr):
            ast.copy_location(node, place)
    return new
