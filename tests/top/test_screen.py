# SPDX-License-Identifier: Apache-2.0
"""The screen of ``top``, driven by keys: renewed tables, a filter, one pool, a pause, and a source that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual.widgets import DataTable, Input, Static

from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.top.screen import Top
from tests.support.segments import NOW
from tests.support.wait import eventually_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from textual.pilot import Pilot

    from sqlalchemy_pool_exporter.board.query import Query
    from sqlalchemy_pool_exporter.board.schema import Board
    from tests.support.segments import Process

SIZE = (160, 40)


class Simulated:
    """A source on a directory whose clock stands still; it fails while ``error`` is set."""

    name = "simulated"

    def __init__(self, directory: Path) -> None:
        self._reader = Reader(directory)
        self.error: str | None = None
        self.asked: list[Query] = []

    def read(self, query: Query) -> Board:
        self.asked.append(query)
        if self.error is not None:
            raise BoardError(self.error)
        moments = Moments(self._reader.read, monotonic=lambda: NOW, wall=lambda: NOW)
        return board(moments.get(), query)


def rows(app: Top, table: str) -> list[list[str]]:
    found: DataTable[Any] = app.query_one(f"#{table}", DataTable)
    return [[str(cell) for cell in found.get_row_at(at)] for at in range(found.row_count)]


def words(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).render())


async def until(condition: Callable[[], bool]) -> None:
    assert await eventually_async(condition)


def run(directory: Path, scenario: Callable[[Top, Pilot[None], Simulated], Awaitable[None]]) -> None:
    """Run the screen and do with it what the scenario does, once it shows something."""

    async def shown() -> None:
        source = Simulated(directory)
        app = Top(source, interval=0.05)
        async with app.run_test(size=SIZE) as pilot:
            await until(lambda: words(app, "state") != "")
            await scenario(app, pilot, source)

    asyncio.run(shown())


def test_tables(tmp_path: Path, process: Callable[..., Process]) -> None:
    """The screen shows what is wrong, pools with bars, and who holds what, and follows what changes."""
    orders = process()
    orders.hold(NOW - 9, 0, site="app:pay:88", holder=-7)
    orders.idle(NOW - 20, 1)

    async def scenario(app: Top, pilot: Pilot[None], _: Simulated) -> None:
        ((name, state, bar, in_use, *_rest),) = rows(app, "pools")
        assert ("orders", "ok", "████████▒▒▒▒▒▒▒▒░░░░░░░░", "1/3") == (name, state, bar, in_use)
        ((held, where, pool, task, *_rest),) = rows(app, "held")
        assert ("9.0 s", "app:pay:88", "orders", "Task-7") == (held, where, pool, task)
        assert "1 pool, 1 process, 1 in use, 1 idle" in words(app, "summary")
        assert "simulated, every 0.05 s" == words(app, "state")
        # What is waited for is last: the screen reads in another thread.
        orders.wait(NOW - 5)
        orders.hold(NOW - 8, 1, site="app:list:3")
        orders.hold(NOW - 7, 2, site="app:list:3")
        await until(lambda: len(rows(app, "held")) == 3)
        assert "████████████████████▶▶▶▶"[:18] == rows(app, "pools")[0][2][:18]
        assert "▶" * 6 == rows(app, "pools")[0][2][18:]
        assert "warning orders: slow: 1 caller waits, for 5.0 s" in words(app, "conditions")

    run(tmp_path, scenario)


def test_filter(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A slash opens the filter, which filters as it is typed and stays after Enter; Escape shows all pools."""
    process("orders")
    process("billing")

    async def scenario(app: Top, pilot: Pilot[None], _: Simulated) -> None:
        await until(lambda: len(rows(app, "pools")) == 2)
        await pilot.press("slash", *"BILL")
        await until(lambda: [row[0] for row in rows(app, "pools")] == ["billing"])
        await pilot.press("enter")
        assert not app.query_one("#filter", Input).has_class("-shown")
        await until(lambda: "filter 'BILL'" in words(app, "state"))
        await pilot.press("escape")
        await until(lambda: len(rows(app, "pools")) == 2)

    run(tmp_path, scenario)


def test_one_pool(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Enter shows the pool under the cursor alone, and the cursor stays where it is while rows are renewed."""
    for name in ("a", "b", "c"):
        process(name)

    async def scenario(app: Top, pilot: Pilot[None], source: Simulated) -> None:
        await until(lambda: len(rows(app, "pools")) == 3)
        await pilot.press("down")
        seen = len(source.asked)
        await until(lambda: len(source.asked) > seen + 3)
        assert 1 == app.query_one("#pools", DataTable).cursor_row
        await pilot.press("enter")
        await until(lambda: [row[0] for row in rows(app, "pools")] == ["b"])
        assert "pool b" in words(app, "state")
        await pilot.press("escape")
        await until(lambda: len(rows(app, "pools")) == 3)

    run(tmp_path, scenario)


def test_pause(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Paused, nothing is read; the same key goes on."""
    orders = process()

    async def scenario(app: Top, pilot: Pilot[None], source: Simulated) -> None:
        await pilot.press("p")
        await until(lambda: "paused" in words(app, "state"))
        seen = len(source.asked)
        orders.hold(NOW - 1)
        await asyncio.sleep(0.3)
        assert (seen, []) == (len(source.asked), rows(app, "held"))
        await pilot.press("p")
        await until(lambda: len(rows(app, "held")) == 1)

    run(tmp_path, scenario)


def test_a_source_that_fails(tmp_path: Path, process: Callable[..., Process]) -> None:
    """If the source fails, the last board stays, and the reason is shown until it answers again."""
    process()

    async def scenario(app: Top, pilot: Pilot[None], source: Simulated) -> None:
        source.error = "no answer from [red]here[/red]"
        await until(lambda: words(app, "state") == "not current: no answer from [red]here[/red]")
        assert 1 == len(rows(app, "pools"))
        source.error = None
        await until(lambda: words(app, "state").startswith("simulated"))
        await pilot.press("q")

    run(tmp_path, scenario)


def test_names_are_no_markup(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Names with brackets or control characters are shown as they are, and do not colour or move anything."""
    process("[red]x[/red]").hold(NOW - 90, site="[bold]\x1b[2J")

    async def scenario(app: Top, _pilot: Pilot[None], _: Simulated) -> None:
        assert "[red]x[/red]" == rows(app, "pools")[0][0]
        assert "[bold]" in rows(app, "held")[0][1] or "other" == rows(app, "held")[0][1]
        assert "[red]x[/red]: held: 1 connection" in words(app, "conditions")

    run(tmp_path, scenario)


def test_many(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Of many conditions the worst are shown, and the others are counted."""
    for at in range(9):
        process(f"pool-{at}").hold(NOW - 90)

    async def scenario(app: Top, _pilot: Pilot[None], _: Simulated) -> None:
        assert words(app, "conditions").endswith("and 3 more")

    run(tmp_path, scenario)


def test_findings(tmp_path: Path, process: Callable[..., Process]) -> None:
    """What the audit finds is below the conditions, three of it by name."""
    for at in range(5):
        process(f"pool-{at}").block[layout.RECYCLE] = 60.0

    async def scenario(app: Top, _pilot: Pilot[None], _: Simulated) -> None:
        lines = words(app, "conditions").splitlines()
        assert lines[0] == "audit pool-0: recycle_short: pool_recycle is 60 s"
        assert lines[3:] == ["and 2 more findings"]

    run(tmp_path, scenario)


def test_an_empty_directory(tmp_path: Path) -> None:
    """Without pools the tables are empty."""

    async def scenario(app: Top, pilot: Pilot[None], _: Simulated) -> None:
        await pilot.press("enter", "down")
        assert ([], []) == (rows(app, "pools"), rows(app, "held"))

    run(tmp_path, scenario)
