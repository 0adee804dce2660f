# SPDX-License-Identifier: Apache-2.0
"""The cost of a checkout and a return, in calls and in memory: figures that do not depend on the load of the machine.

The bytecode also shows that no other code can interrupt the stretches marked as straight lines.
"""

from __future__ import annotations

import ast
import dis
import gc
import os
import re
import sqlite3
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord

import sqlalchemy_pool_exporter
from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording import (
    checkin_cy,
    checkout_cy,
    connection_events,
    connection_row_cy,
    connection_table,
    event_loops,
    holders_cy,
    nesting,
    ping_cy,
    recorder,
    recorder_state_cy,
    slots,
    traces,
)
from sqlalchemy_pool_exporter.segment import block, pool_block, room, site_entry_cy, texts
from sqlalchemy_pool_exporter.segment.block import ROWS
from sqlalchemy_pool_exporter.segment.page import ROWS_PER_PAGE
from tests.support.samples import Exposition
from tests.support.sources import is_compiled, source_file, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType

    from sqlalchemy.engine import Engine

PACKAGE = str(Path(sqlalchemy_pool_exporter.__file__).parent)
MODULES = (
    checkin_cy,
    checkout_cy,
    connection_events,
    connection_row_cy,
    connection_table,
    event_loops,
    nesting,
    ping_cy,
    pool_block,
    recorder,
    room,
    slots,
    texts,
    traces,
)


class Link(sqlite3.Connection):
    """A SQLite connection that closes itself, without a ResourceWarning, when it is dropped."""

    def __init__(self) -> None:
        super().__init__(":memory:", check_same_thread=False)

    def __del__(self) -> None:
        self.close()


def engine_of(**options: Any) -> Engine:
    """Return an engine with a QueuePool over SQLite that has one idle connection."""
    engine = create_engine("sqlite://", poolclass=QueuePool, creator=Link, **options)
    engine.connect().close()
    return engine


# -- calls


@pytest.fixture(autouse=True)
def new_holder() -> Iterator[None]:
    """Let this thread hold nothing, whatever another test left: a holder of a connection takes more calls."""
    before = holders_cy.holder_of_call.set(None)
    yield
    holders_cy.holder_of_call.reset(before)


def calls_of(act: Callable[[], object], runs: int = 10) -> Counter[str]:
    """Return the Python and C functions that an act calls: of some runs, the one with the fewest calls.

    A wait of more than half a millisecond takes one more call, which finds its bucket.
    """
    return min((_calls_of(act) for _ in range(runs)), key=Counter.total)


def _calls_of(act: Callable[[], object]) -> Counter[str]:
    calls: Counter[str] = Counter()

    def count(frame: FrameType, what: str, argument: Any) -> None:
        if what == "call":
            calls[frame.f_code.co_qualname] += 1
        elif what == "c_call":
            calls[argument.__qualname__] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize(
    ("sites", "pre_ping", "most"),
    [(False, False, 6), (False, True, 11), (True, False, 15), (None, False, 11)],
)
def test_calls_of_a_checkout_and_return(sites: bool | None, pre_ping: bool, most: int) -> None:
    """A checkout and return add six calls: two hooks, the append of a waiter slot, three clock reads.

    A pre-ping adds five more: its hook, two to find the connection's row, and two clock reads. The holder adds five:
    the running loop, the holder of the context, the thread, the label, and the number of idle connections. The site
    adds five instead of the last: its function, two frames, the id of a code and its look-up. SQLAlchemy's own calls
    all remain.
    """
    engine = engine_of(pool_pre_ping=pre_ping)

    def cycle() -> None:
        engine.pool.connect().close()

    bare = calls_of(cycle)
    instrument(engine, registry=CollectorRegistry(), sites=sites)
    cycle()
    instrumented = calls_of(cycle)
    assert not bare - instrumented
    added = instrumented - bare
    assert added.total() <= most, added
    if not pre_ping and sites is False:
        # A compiled function makes no event.
        assert [name for name in added if "." in name and "<locals>" in name] == (
            []
            if is_compiled(checkout_cy)
            else ["connect_hook.<locals>.connect", "return_hook.<locals>._do_return_conn"]
        )


@pytest.mark.parametrize("moment", ["after dispose", "after closing"])
def test_calls_afterwards(moment: str) -> None:
    """After dispose() the new pool costs as many calls as the old one; after close() the pool costs no extra call."""
    engine = engine_of()

    def cycle() -> None:
        engine.pool.connect().close()

    bare = calls_of(cycle)
    handle = instrument(engine, registry=CollectorRegistry())
    instrumented = calls_of(cycle)
    if moment == "after dispose":
        engine.dispose()
        engine.connect().close()
        assert instrumented == calls_of(cycle)
    else:
        handle.close()
        assert bare == calls_of(cycle)


def test_calls_once_latecomers_are_served() -> None:
    """Instrumenting a pool in use adds a ``checkout`` listener; a checkout after the pool's timeout removes it."""
    engine = engine_of()
    with engine.connect():
        now = [1000.0]

        def clock() -> float:
            return now[0]

        pool: Any = engine.pool
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "sqlalchemy_pool_exporter.recording.instrument.Recorder",
                lambda *args, **options: recorder.Recorder(*args, **options, clock=clock),
            )
            instrument(engine, registry=CollectorRegistry())
        assert pool.dispatch.checkout
    now[0] += 10_000
    engine.connect().close()
    assert not pool.dispatch.checkout


@pytest.mark.skipif(
    not is_compiled(connection_row_cy), reason="an attribute is the fastest where a row is interpreted"
)
def test_a_record_gets_no_attribute() -> None:
    """Compiled, the first attribute of a record would make each call of its methods look the method up."""
    engine = engine_of()
    instrument(engine, registry=CollectorRegistry())
    with engine.connect() as connection:
        assert {} == vars(connection.connection._connection_record)


def test_other_references_to_a_record() -> None:
    """What refers weakly to a record, before it gets a row or afterwards, does not hide its row."""
    engine, registry = create_engine("sqlite://", poolclass=QueuePool, creator=Link), CollectorRegistry()
    held: list[Any] = []

    def refer(_connection: object, record: Any) -> None:
        held.extend([weakref.ref(record), weakref.ref(record, held.append), weakref.proxy(record)])

    event.listen(engine.pool, "connect", refer)
    handle = instrument(engine, registry=registry)
    with engine.connect() as connection:
        refer(None, connection.connection._connection_record)
    engine.connect().close()
    exposition = Exposition(registry)
    assert (
        2
        == exposition.value("checkouts_total", handle.name)
        == exposition.value("checkins_total", handle.name)
    )
    assert not exposition.get("exporter_recording_faults_total", handle.name)
    assert {"idle": 1.0, "in_use": 0.0} == {
        state: exposition.value("connections", handle.name, state=state) for state in ("idle", "in_use")
    }


@pytest.mark.parametrize("act", ["checkout", "overflow", "ping"])
def test_work_does_not_grow(act: str) -> None:
    """A checkout makes the same calls with 500 connections open as with one.

    They are another thread's: a checkout by a thread that holds some is nested, and looks at the latest of these.
    """
    engine = engine_of(pool_size=1, max_overflow=-1, pool_pre_ping=act == "ping")
    instrument(engine, registry=CollectorRegistry())

    def cycle() -> None:
        if act == "overflow":
            first, second = engine.pool.connect(), engine.pool.connect()
            second.close()
            first.close()
        else:
            engine.pool.connect().close()

    cycle()
    few = calls_of(cycle)
    with ThreadPoolExecutor(1) as other:
        held = list(other.map(lambda _: engine.pool.connect(), range(500)))
    held.pop().close()
    many = calls_of(cycle)
    for calls in (few, many):
        del calls["bisect_left"]  # a wait of more than half a millisecond, which depends on the machine
    assert few == many


def test_a_scrape_grows_with_what_is_open_and_not_with_the_table() -> None:
    """A scrape of an idle pool makes no more calls with a table for thousands of connections than with a small one."""
    counts = []
    for options in ({"pool_size": 5}, {"pool_size": 5, "max_overflow": -1}):
        engine, registry = engine_of(**options), CollectorRegistry()
        instrument(engine, name="p", registry=registry)
        engine.connect().close()
        counts.append(calls_of(partial(_scrape, registry)).total())
    few, many = counts
    assert many <= few


def _scrape(registry: CollectorRegistry) -> None:
    for _ in registry.collect():
        pass


# -- straight lines

# Instructions that run no other code, given a memoryview of doubles, floats, and attributes in slots. CPython 3.11 to
# 3.15 lets another thread, a signal handler or the garbage collector run only on entering a function (RESUME), after a
# call (CALL…) and at a jump backwards (JUMP_BACKWARD and, in 3.11, POP_JUMP_BACKWARD_IF_…); see `eval_breaker` in
# Python/ceval.c and Python/bytecodes.c.
QUIET = re.compile(
    r"CACHE|NOP|NOT_TAKEN|EXTENDED_ARG|COPY|SWAP|POP_TOP|(LOAD|STORE)_FAST(_\w+)?|DELETE_(SUBSCR|ATTR)"
    r"|LOAD_(CONST|SMALL_INT|COMMON_CONSTANT|GLOBAL|DEREF|ATTR)|STORE_(ATTR|SUBSCR)"
    r"|BINARY_(OP|SUBSCR)|COMPARE_OP|IS_OP|TO_BOOL|UNARY_\w+|JUMP_FORWARD|POP_JUMP(_FORWARD)?_IF_\w+|RETURN_(CONST|VALUE)"
)
# Attributes of a recorder, a row or SQLAlchemy's record: slots or plain attributes, so reading them runs no code. So it
# is with the attributes of a compiled class, which are read by functions of C.
SLOTS = {
    name
    for owner in (
        recorder.Recorder,
        recorder_state_cy.RecorderState,
        connection_row_cy.ConnectionRow,
        connection_row_cy.HeldRows,
        connection_row_cy.Holder,
        connection_row_cy.RecordState,
        site_entry_cy.SiteEntry,
        connection_table.ConnectionTable,
        slots.FreeSlots,
        _ConnectionRecord,
    )
    for name in owner.__slots__
} | {connection_row_cy.STATE_ATTRIBUTE, "is_adding", "is_growing", "_pages"}
CONSTANTS = {name for name, value in vars(block).items() if isinstance(value, int | float)}


def stretches(module: ModuleType) -> list[tuple[int, int]]:
    """Return the first and last line of each stretch marked as a straight line."""
    marks = [
        (number, "end of straight line" in line)
        for number, line in enumerate(source_of(module).splitlines(), 1)
        if re.match(r"\s*# (end of )?straight line", line)
    ]
    assert [is_end for _, is_end in marks] == [False, True] * (len(marks) // 2), "each has an end"
    return [(first, last) for (first, _), (last, _) in zip(marks[::2], marks[1::2], strict=True)]


def instructions(module: ModuleType, first: int, last: int) -> list[dis.Instruction]:
    """Return the instructions compiled from these lines, in order."""
    found = [
        instruction
        for code in _codes(compile(source_of(module), str(source_file(module)), "exec"))
        for instruction in dis.get_instructions(code)
        if instruction.positions
        and instruction.positions.lineno is not None
        and first <= instruction.positions.lineno <= last
    ]
    assert found, f"no code in lines {first} to {last}"
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


ALL_STRETCHES = [(module, *lines) for module in MODULES for lines in stretches(module)]


@pytest.mark.parametrize(
    ("module", "first", "last"),
    ALL_STRETCHES,
    ids=[f"{m.__name__.rpartition('.')[2]}-{a}" for m, a, _ in ALL_STRETCHES],
)
def test_a_straight_line_is_one(module: ModuleType, first: int, last: int) -> None:
    """No other code can run between the first and the last store of a marked stretch."""
    code = instructions(module, first, last)
    loud = [(each.positions, each.opname) for each in code if not QUIET.fullmatch(each.opname)]
    assert loud == []
    backwards = [each.opname for each in code if each.opcode in dis.hasjrel and each.argval <= each.offset]
    assert backwards == []
    attributes = {each.argval for each in code if each.opname in {"LOAD_ATTR", "STORE_ATTR"}}
    assert attributes <= SLOTS | CONSTANTS
    names = {each.argval for each in code if each.opname == "LOAD_GLOBAL"}
    assert all(isinstance(getattr(module, name), int | float) for name in names)
    # The marks are comments, so an edit could have moved them away from what they mark.
    assert [
        each
        for each in code
        if each.opname in {"STORE_SUBSCR", "STORE_ATTR", "DELETE_SUBSCR", "DELETE_ATTR", "BINARY_SUBSCR"}
        or (each.opname == "BINARY_OP" and each.argrepr == "[]")
    ]


def test_there_are_straight_lines() -> None:
    """The hooks of checkout and return, and the methods that count, have marked stretches."""
    assert len(stretches(checkout_cy)) >= 2
    assert len(stretches(checkin_cy)) >= 2
    assert len(stretches(recorder)) >= 2
    assert len(stretches(connection_events)) >= 4
    assert len(stretches(connection_row_cy)) >= 1
    assert len(stretches(connection_table)) >= 2
    assert len(stretches(slots)) >= 1
    assert len(stretches(nesting)) >= 2


@pytest.mark.parametrize(
    "module", [checkin_cy, checkout_cy, connection_events, connection_table, ping_cy, recorder]
)
def test_what_is_added_is_not_interrupted(module: ModuleType) -> None:
    """Every ``+=`` on shared state reads, adds and stores without interruption, in a marked stretch or not."""
    found = 0
    for statement in ast.walk(ast.parse(source_of(module))):
        if not isinstance(statement, ast.AugAssign) or isinstance(statement.target, ast.Name):
            continue
        found += 1
        code = instructions(module, statement.lineno, statement.end_lineno or statement.lineno)
        reads = [at for at, each in enumerate(code) if _reads(each)]
        loud = [each.opname for each in code[min(reads) :] if not QUIET.fullmatch(each.opname)]
        assert loud == [], f"line {statement.lineno}"
    assert found


def _reads(instruction: dis.Instruction) -> bool:
    """Return whether an instruction reads an element or an attribute; since 3.14 the first is a BINARY_OP, too."""
    name = instruction.opname
    return name in {"BINARY_SUBSCR", "LOAD_ATTR"} or (name == "BINARY_OP" and instruction.argrepr == "[]")


@pytest.mark.parametrize(
    "module", [checkin_cy, checkout_cy, connection_events, connection_table, ping_cy, recorder, slots]
)
def test_what_is_read_and_stored_is_on_one_line(module: ModuleType) -> None:
    """A statement that reads and stores the same place is on one line: a debugger can switch threads between lines."""
    found = 0
    for statement in ast.walk(ast.parse(source_of(module))):
        if isinstance(statement, ast.AugAssign):
            changes = True
        elif isinstance(statement, ast.Assign):
            places = {ast.unparse(target) for target in statement.targets if not isinstance(target, ast.Name)}
            changes = any(place in ast.unparse(statement.value) for place in places)
        else:
            continue
        if changes:
            found += 1
            assert statement.lineno == statement.end_lineno, f"line {statement.lineno}"
    assert found


def test_the_allowed_instructions_are_tested() -> None:
    """The check finds a call or a loop in a stretch."""
    source = "def f(block, x):\n    block[0] = float(x)\n    for each in block:\n        block[1] = each\n"
    found = {
        each.opname
        for code in _codes(compile(source, "f", "exec"))
        for each in dis.get_instructions(code)
        if not QUIET.fullmatch(each.opname)
    }
    assert {"CALL", "FOR_ITER", "JUMP_BACKWARD", "RESUME"} <= found


# -- what is loaded


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_nothing_heavy_is_imported(driver: str) -> None:
    """Importing the package and instrumenting an engine load neither the sidecar nor its dependencies."""
    program = f"""
import sys
import sqlalchemy
if "aio" in {driver!r}:
    from sqlalchemy.ext.asyncio import create_async_engine as create_engine
else:
    from sqlalchemy import create_engine, event
engine = create_engine("{driver}://")
import prometheus_client
before = set(sys.modules)
import sqlalchemy_pool_exporter
registry = prometheus_client.CollectorRegistry()
with sqlalchemy_pool_exporter.instrument(engine, registry=registry):
    prometheus_client.generate_latest(registry)
# Not the table of types that compiled modules share.
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before if not name.startswith("_cython_")}}
print(*sorted(loaded - set(sys.stdlib_module_names)))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("sqlalchemy")))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    loaded, modules = result.stdout.splitlines()
    assert set(loaded.split()) <= {"sqlalchemy_pool_exporter", "prometheus_client", "greenlet"}
    assert {"aiohttp", "asyncpg", "yaml", "pydantic", "bcrypt"}.isdisjoint(loaded.split())
    mine = {name.partition(".")[2] for name in modules.split() if name.startswith("sqlalchemy_pool_exporter")}
    assert mine.isdisjoint({"config", "probe", "web", "sidecar", "cli", "schema"})
    assert not [name for name in modules.split() if name.startswith("sqlalchemy.")]


# -- memory


def _taken(make: Callable[[int], object], number: int) -> float:
    """Return the bytes that our code allocates per thing, over ``number`` things."""
    kept = [make(0)]
    gc.collect()
    tracemalloc.start(8)
    try:
        kept += [make(each) for each in range(1, number + 1)]
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{PACKAGE}/*")])
        return sum(trace.size for trace in ours.traces) / number
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "most"),
    [
        # A block takes a page of 8 kB, whatever the limits; each 255 open connections take another one.
        ({"poolclass": QueuePool}, 26_000),
        ({"poolclass": QueuePool, "pool_size": 100, "max_overflow": 0}, 26_000),
        ({"poolclass": NullPool}, 26_000),
    ],
)
def test_memory_of_a_pool(options: dict[str, Any], most: int) -> None:
    """The memory of an instrumented pool depends on what is open, and not on its limits."""
    registry = CollectorRegistry()
    engines = [create_engine("sqlite://", **options) for _ in range(11)]
    taken = _taken(lambda each: instrument(engines[each], name=f"p{each}", registry=registry), 10)
    assert 8_000 < taken < most


def test_memory_of_a_connection() -> None:
    """An open connection takes less than 1.3 kB, which is freed after its close."""
    engine = engine_of(pool_size=1, max_overflow=-1)
    instrument(engine, registry=CollectorRegistry())
    held: list[Any] = []
    assert 0 < _taken(lambda _: held.append(engine.pool.connect()), 500) < 1_300
    tracemalloc.start(8)
    try:
        sizes = []
        for _ in range(4):
            held += [engine.pool.connect() for _ in range(100)]
            while held:
                held.pop().close()
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{PACKAGE}/*")])
            sizes.append(sum(trace.size for trace in ours.traces))
    finally:
        tracemalloc.stop()
    assert [after - before < 1_000 for before, after in pairwise(sizes[1:])] == [True] * 2


def test_tables_that_are_full_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond all rows count as untracked; once fewer are open, they are tracked again."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.segment.pool_block.ROW_PAGES", 2)
    engine, registry = engine_of(pool_size=1, max_overflow=-1), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    most = ROWS + 2 * ROWS_PER_PAGE
    held = [engine.pool.connect() for _ in range(most + 4)]
    exposition = Exposition(registry)
    assert exposition.value("untracked_connections", handle.name) == 4
    assert exposition.value("connections", handle.name, state="in_use") == most + 4
    while held:
        held.pop().close()
    exposition = Exposition(registry)
    assert exposition.value("connections", handle.name, state="idle") == 1
    assert exposition.value("connections", handle.name, state="in_use") == 0
    assert exposition.value("checkins_total", handle.name) == most + 4
    assert not exposition.get("exporter_recording_faults_total", handle.name)
