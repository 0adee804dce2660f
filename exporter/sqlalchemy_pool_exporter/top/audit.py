# SPDX-License-Identifier: Apache-2.0
"""Runs the command ``audit``: prints what the audit finds in a directory or at an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.audit.rules import RULES
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.board.words import counted
from sqlalchemy_pool_exporter.errors import BoardError

from .columns import finding, printable
from .output import write, write_json
from .source import DirectorySource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy_pool_exporter.board.schema import Board

    from .source import Source

NONE, FOUND = 0, 1  # exit statuses; 2 if the audit could not look
_QUERY: Final = Query(pools=1, workers=0, held=0)  # findings are of all pools


def run(source: Source, *, as_json: bool, ignored: Collection[str] = ()) -> int:
    """Print the findings and return the exit status.

    Args:
        source: where to look.
        as_json: print JSON instead of text.
        ignored: rules whose findings are meant to be.

    Raises:
        BoardError: it could not look, or there was nothing to look at.
    """
    if unknown := sorted(set(ignored) - {rule.name for rule in RULES}):
        raise BoardError(f"no rule is called {', '.join(map(repr, unknown))}")
    board = source.read(_QUERY)
    board["findings"] = [one for one in board["findings"] if one["rule"] not in ignored]
    if not board["processes"]["live"] or not board["totals"]["pools"]:
        raise BoardError(f"{source.name}: {board['note'] or 'no live process has a pool'}")
    if as_json:
        write_json(_answer(board))
    else:
        write("".join(f"{line}\n" for line in _lines(board, source)))
    if board["findings"]:
        return FOUND
    if board["unreadable"]:
        files = counted(sum(board["unreadable"].values()), "file")
        raise BoardError(f"{source.name}: {files} of processes cannot be read")
    return NONE


def _answer(board: Board) -> dict[str, Any]:
    keys = ("version", "exporter", "time", "processes", "unreadable", "findings", "findings_left_out")
    totals = {"pools": board["totals"]["pools"], "pools_unprobed": _unprobed(board)}
    return {key: board[key] for key in keys} | totals  # type: ignore[literal-required]


def _unprobed(board: Board) -> int:
    return board.get("pools_unprobed", 0)  # an older release has no such key


def _lines(board: Board, source: Source) -> Iterator[str]:
    for one in board["findings"]:
        yield f"{one['severity']:8}  {finding(one)}"
        yield f"{'':8}  {printable(one['remedy'])}"
    if board["findings_left_out"]:
        yield counted(board["findings_left_out"], "more finding")
    processes = counted(board["processes"]["live"], "process", "processes")
    looked = f"{counted(board['totals']['pools'], 'pool')} in {processes}"
    found = len(board["findings"]) + board["findings_left_out"]
    yield f"{counted(found, 'finding') if found else 'nothing found'} in {looked}"
    if unprobed := _unprobed(board):
        rules = ", ".join(rule.name for rule in RULES if rule.needs_server)
        if isinstance(source, DirectorySource):
            yield f"a directory does not show the database server; ask a sidecar that probes it for {rules}"
        else:
            pools = counted(unprobed, "pool")
            yield f"no probe tells of the database server of {pools}, so these rules could not look: {rules}"
