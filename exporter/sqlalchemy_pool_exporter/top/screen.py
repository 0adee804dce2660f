# SPDX-License-Identifier: Apache-2.0
"""The screen, with Textual: pools and holders in tables that are renewed, a filter, and a view of one pool."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Input, Static

from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.board.words import counted
from sqlalchemy_pool_exporter.errors import BoardError

from .columns import HELD, NUMBERS, POOLS, condition, finding, held_row, pool_row, printable, summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual.app import ComposeResult

    from sqlalchemy_pool_exporter.board.schema import Board, Limits, Severity, State

    from .source import Source

QUERY: Final = Query(pools=100, workers=0, held=100)
_CONDITIONS: Final = 6
_FINDINGS: Final = 3
_BAR: Final = 24  # characters
_STYLES: Final[dict[Severity | None, str]] = {
    "critical": "bold red",
    "warning": "yellow",
    "info": "blue",
    None: "",
}


class Top(App[None]):
    """The board, renewed until it is quit.

    Mutable state: what is asked for, whether that is paused, and the last board.

    Args:
        source: where the board comes from.
        interval: seconds between two reads.
        query: what is asked for at first.
    """

    CSS: ClassVar[str] = """
    #summary { height: auto; padding: 0 1; text-style: bold; }
    #conditions { height: auto; padding: 0 1; }
    #state { height: 1; padding: 0 1; color: $text-muted; }
    #filter { display: none; }
    #filter.-shown { display: block; }
    #pools { height: auto; max-height: 50%; }
    #held { height: 1fr; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("p", "pause", "Pause"),
        Binding("escape", "all_pools", "All pools"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, source: Source, *, interval: float = 2.0, query: Query = QUERY) -> None:
        super().__init__()
        self._source, self._interval, self._asked = source, interval, query
        self._is_paused = False
        self._pools: list[str] = []  # names, in the order of the rows

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static(id="summary", markup=False)
        yield Static(id="conditions")
        yield DataTable(id="pools", cursor_type="row", zebra_stripes=True)
        yield DataTable(id="held", cursor_type="row", zebra_stripes=True)
        yield Input(id="filter", placeholder="pool, site or process", value=self._asked.text)
        yield Static(id="state", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Fill the screen, and do so again and again."""
        self.title = self._source.name
        self.query_one("#pools", DataTable).add_columns(*_heads((*POOLS[:2], "CONNECTIONS", *POOLS[2:])))
        self.query_one("#held", DataTable).add_columns(*_heads(HELD))
        self.query_one("#pools", DataTable).focus()
        self.renew()

    @work(exclusive=True)
    async def renew(self) -> None:
        """Read until another call takes over."""
        while True:
            asked = self._asked
            read: Board | BoardError
            try:
                # In a thread: a directory on a slow disk or an endpoint that hangs must not stop the keys.
                read = await asyncio.to_thread(self._source.read, asked)
            except BoardError as error:
                read = error
            with suppress(NoMatches):  # the screen is being closed
                self._show(read)
            if self._is_paused:
                return
            await asyncio.sleep(self._interval)

    def _show(self, read: Board | BoardError) -> None:
        state = self.query_one("#state", Static)
        if isinstance(read, BoardError):
            state.update(f"not current: {printable(str(read))}")
            return
        state.update(self._state())
        self._fill(read)

    def _fill(self, board: Board) -> None:
        self.query_one("#summary", Static).update(summary(board))
        self.query_one("#conditions", Static).update(_conditions(board))
        self._pools = [pool["name"] for pool in board["pools"]]
        _refill(
            self.query_one("#pools", DataTable),
            (
                _with_bar(
                    _cells(pool_row(pool), POOLS), _bar(pool["limits"], pool["state"]), pool["severity"]
                )
                for pool in board["pools"]
            ),
        )
        _refill(self.query_one("#held", DataTable), (_cells(held_row(one), HELD) for one in board["held"]))

    def _state(self) -> str:
        parts = [printable(self._source.name)]
        if self._asked.names:
            parts.append(f"pool {printable(', '.join(sorted(self._asked.names)))}")
        if self._asked.text:
            parts.append(f"filter {printable(self._asked.text)!r}")
        parts.append("paused" if self._is_paused else f"every {self._interval:g} s")
        return ", ".join(parts)

    # -- keys

    def action_filter(self) -> None:
        """Show the filter."""
        field = self.query_one("#filter", Input)
        field.add_class("-shown")
        field.focus()

    def on_input_changed(self, changed: Input.Changed) -> None:
        """Filter as it is typed."""
        if changed.value.strip() != self._asked.text:
            self._ask(text=changed.value.strip())

    def on_input_submitted(self) -> None:
        """Leave the filter; it stays in force."""
        self.query_one("#filter", Input).remove_class("-shown")
        self.query_one("#pools", DataTable).focus()

    def action_all_pools(self) -> None:
        """Show all pools: empty the filter, and leave the view of one pool."""
        self.query_one("#filter", Input).value = ""
        self.on_input_submitted()
        self._ask(text="", names=frozenset())

    def action_pause(self) -> None:
        """Stop, or go on."""
        self._is_paused = not self._is_paused
        self.renew()

    def on_data_table_row_selected(self, selected: DataTable.RowSelected) -> None:
        """Show one pool."""
        if selected.data_table.id == "pools" and selected.cursor_row < len(self._pools):
            self._ask(names=frozenset((self._pools[selected.cursor_row],)))

    def _ask(self, **changes: Any) -> None:
        self._asked = self._asked._replace(**changes)
        self.renew()


def _heads(columns: Iterable[str]) -> list[Text]:
    return [Text(name, justify="right" if name in NUMBERS else "left") for name in columns]


def _cells(row: Sequence[str], columns: Sequence[str]) -> list[Text]:
    # As Text, in which no bracket is markup.
    return [
        Text(cell, justify="right" if column in NUMBERS else "left")
        for cell, column in zip(row, columns, strict=True)
    ]


def _with_bar(cells: list[Text], bar: Text, severity: Severity | None) -> list[Text]:
    cells[1].stylize(_STYLES[severity])
    return [*cells[:2], bar, *cells[2:]]


def _bar(limits: Limits | None, state: State) -> Text:
    """Return a bar of what is in use, beyond size, idle and free, and of the callers that wait."""
    overflow = min(state["overflow"], state["in_use"])
    capacity = None if limits is None else limits["capacity"]
    opened = state["in_use"] + state["idle"]
    parts = (
        ("█", "blue", state["in_use"] - overflow),
        ("█", "dark_orange", overflow),
        ("▒", "green", state["idle"]),
        ("░", "", max(0.0, capacity - opened) if capacity is not None else 0.0),
        ("▶", "red", state["waiting"]),
    )
    total = sum(count for _, _, count in parts) or 1.0
    bar = Text()
    at = done = 0.0
    for letter, style, count in parts:
        at += count / total * _BAR
        bar.append(letter * (round(at) - round(done)), style)
        done = at
    return bar


def _conditions(board: Board) -> Text:
    if board["note"] is not None:
        return Text(f"no pools: {printable(board['note'])}")
    found = board["conditions"]
    lines = [
        Text.assemble((one["severity"], _STYLES[one["severity"]]), " ", condition(one))
        for one in found[:_CONDITIONS]
    ]
    left_out = len(found[_CONDITIONS:]) + board["conditions_left_out"]
    if left_out:
        lines.append(Text(f"and {left_out} more"))
    findings = board["findings"]
    lines += [Text.assemble(("audit", _STYLES["info"]), " ", finding(one)) for one in findings[:_FINDINGS]]
    left_out = len(findings[_FINDINGS:]) + board["findings_left_out"]
    if left_out:
        lines.append(Text(f"and {counted(left_out, 'more finding')}"))
    return Text("\n").join(lines)


def _refill(table: DataTable[Any], rows: Iterable[Sequence[Text]]) -> None:
    """Put other rows in place, and leave cursor and scroll where they are."""
    row, x, y = table.cursor_row, table.scroll_x, table.scroll_y
    table.clear()
    for one in rows:
        table.add_row(*one)
    table.move_cursor(row=min(row, max(0, table.row_count - 1)), scroll=False)
    table.scroll_to(x, y, animate=False)
