# SPDX-License-Identifier: Apache-2.0
"""The board as text for a pipe."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.board.words import counted

from .columns import HELD, NUMBERS, POOLS, condition, finding, held_row, pool_row, printable, summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_pool_exporter.board.schema import Board


def text(board: Board, name: str) -> str:
    """Return the whole board.

    Args:
        board: what to write.
        name: of where it comes from.
    """
    return "".join(f"{line.rstrip()}\n" for line in _lines(board, name))


def _lines(board: Board, name: str) -> Iterator[str]:
    when = datetime.fromtimestamp(board["time"]).astimezone()
    yield f"{printable(name)}, {when:%Y-%m-%d %H:%M:%S%z}: {summary(board)}"
    if board["note"] is not None:
        yield f"no pools: {printable(board['note'])}"
    if board["conditions"]:
        yield ""
        for one in board["conditions"]:
            yield f"{one['severity']:8}  {condition(one)}"
        yield from _more(board["conditions_left_out"], "condition")
    if board["findings"]:
        yield ""
        for found in board["findings"]:
            yield f"{found['severity']:8}  {finding(found)}"
        yield from _more(board["findings_left_out"], "finding")
    if board["pools"]:
        yield ""
        yield from _table(POOLS, [pool_row(pool) for pool in board["pools"]])
        yield from _more(board["pools_left_out"], "pool")
    if board["held"]:
        yield ""
        yield from _table(HELD, [held_row(one) for one in board["held"]])
        yield from _more(board["held_left_out"], "connection")


def _more(left_out: int, what: str) -> Iterator[str]:
    if left_out:
        yield counted(left_out, f"more {what}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        yield "  ".join(
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
