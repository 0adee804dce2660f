# SPDX-License-Identifier: Apache-2.0
"""Every unpublished name of SQLAlchemy that the package uses is in one list and exists in the installed release."""

from __future__ import annotations

import ast
import weakref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import AssertionPool, AsyncAdaptedQueuePool, QueuePool, SingletonThreadPool, base

import sqlalchemy_pool_exporter
from sqlalchemy_pool_exporter.recording.sqlalchemy_pool import (
    PING_METHODS,
    RECORDS_OUT,
    UNPUBLISHED_NAMES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(sqlalchemy_pool_exporter.__file__).parent
RECORDING = {path.stem: ast.parse(path.read_bytes()) for path in (PACKAGE / "recording").glob("*.py")}
LISTED = {name for names in UNPUBLISHED_NAMES.values() for name in names}
HOME = "sqlalchemy_pool"
# The hot path reads these names itself: a function for each would add two calls to the seven of a checkout and return.
HOT_PATH = {
    "checkin_cy": {"_ConnectionRecord"},
    "checkout_cy": {"_ConnectionFairy", "_ConnectionRecord", "_connection_record", "_overflow", "fairy_ref"},
    "ping_cy": {"_ConnectionRecord"},
    # The one method that it wraps.
    "every_engine": {"_instantiate_plugins"},
    # Only the word, for what a thread waits for.
    **{module: {"queue"} for module in ("exhaustion", "leaks", "stacks")},
}
# Names of other packages: only these say what prometheus_client has registered, and which socket a connection of
# asyncpg has; what joins a name and a suffix; and what Python documents although it begins so.
# And asyncio's: which loop runs, for other implementations of loops; and for what a task waits. anyio's: in which task.
# And that of concurrent.futures: what an executor runs, and what follows. And OpenTelemetry's: the readers of its SDK.
# And Flask-SQLAlchemy's: the engines of each application. And multiprocessing's: how it made this process.
OTHERS = {
    "_collector_to_names",
    "_names_to_collectors",
    "_",
    "_transport",
    "_sock",
    "_socket",
    "_writer",
    "_current_frames",
    "_getframe",
    "_get_running_loop",
    "_callbacks",
    "_fut_waiter",
    "_host_task",
    "_WorkItem",
    "_threads_queues",
    "_done_callbacks",
    "_instrument_class_temporality",
    "_metric_readers",
    "_real_meter_provider",
    "_sdk_config",
    "_app_engines",
    "_start_method",
}


def _defined(tree: ast.AST) -> Iterator[str]:
    """Yield the attribute names that a module of ours defines: functions, classes, and assignments to ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def _used(tree: ast.AST) -> Iterator[str]:
    """Yield the attribute names that a module uses on other objects, and its string constants that are identifiers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            yield node.attr
        # For names passed to getattr() or hasattr().
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


@cache
def _our_own() -> set[str]:
    """Return the attribute names that our modules define, and do not take from SQLAlchemy."""
    ours = {name for tree in RECORDING.values() for name in _defined(tree)}
    slots = {
        str(element.value)
        for tree in RECORDING.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant)
    }
    return (ours | slots) - LISTED


def _unpublished(module: str) -> set[str]:
    return {
        name
        for name in _used(RECORDING[module])
        if name in LISTED
        or (name.strip("_") and name.startswith("_") and not name.startswith(("__", "_pool_exporter_")))
    } - _our_own()


def test_all_are_listed() -> None:
    """The package uses every name in the list, and no other unpublished name."""
    used = set().union(*map(_unpublished, RECORDING)) - OTHERS
    assert LISTED | {PING_METHODS[0], *RECORDS_OUT} == used


@pytest.mark.parametrize("module", sorted(RECORDING.keys() - {HOME}))
def test_no_other_module_uses_any(module: str) -> None:
    """Outside of ``sqlalchemy_pool``, only the hot path uses listed names, and only those allowed above."""
    assert HOT_PATH.get(module, set()) == _unpublished(module) - OTHERS


def test_the_rest_of_the_package_knows_no_pool() -> None:
    """Outside of ``recording`` no module imports SQLAlchemy."""
    importing = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "recording"
        for node in ast.walk(ast.parse(path.read_bytes()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy")
        or (
            isinstance(node, ast.Import)
            and any(each.name.split(".")[0] == "sqlalchemy" for each in node.names)
        )
    }
    assert importing == set()


def test_the_installed_release_has_them() -> None:
    """Each listed name exists on a real pool, record, proxy and queue."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    pool: Any = engine.pool
    proxy: Any = pool.connect()
    asyncio_pool: Any = AsyncAdaptedQueuePool(lambda: None)  # type: ignore[arg-type]
    owners: dict[str, Any] = {
        "pool": pool,
        "QueuePool": pool,
        "SingletonThreadPool": SingletonThreadPool(lambda: None),  # type: ignore[arg-type]
        "AssertionPool": AssertionPool(lambda: None),
        "queue of threads": pool._pool,
        "queue of asyncio": asyncio_pool._pool,
        "record": proxy._connection_record,
        "proxy": proxy,
        "connection": engine.connect(),
        "dialect": engine.dialect,
        "events of a dialect": engine.dialect.dispatch,
        "copy of an engine": engine.execution_options(),
        "listeners of an event": pool.dispatch.checkout.for_modify(pool.dispatch),
        "module of pools": base,
        "URL": engine.url,
    }
    assert owners.keys() == UNPUBLISHED_NAMES.keys()
    missing = {
        f"{owner}.{name}"
        for owner, names in UNPUBLISHED_NAMES.items()
        for name in names
        if not hasattr(owners[owner], name)
    }
    assert missing == set()
    assert any(hasattr(engine.dialect, name) for name in PING_METHODS)
    table, finalizer = RECORDS_OUT
    assert hasattr(base, table) or hasattr(base._ConnectionFairy, finalizer)
    assert hasattr(weakref.finalize, "_registry")
    owners["connection"].close()
    proxy.close()
    engine.dispose()
