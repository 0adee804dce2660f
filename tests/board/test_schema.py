# SPDX-License-Identifier: Apache-2.0
"""The schema of the JSON: what is answered is valid, and the documentation is current."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import ROOT
from tests.support.segments import NOW
from tools import generate_board

if TYPE_CHECKING:
    from tests.support.boards import Directory

pytestmark = pytest.mark.newest

SCHEMA: Any = json.loads((ROOT / "docs" / "pools-v1.schema.json").read_text("utf-8"))


def faults(board: Any) -> list[str]:
    """Return what is not as the schema says; keys that it does not describe count."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - the oldest dependencies are without it

    return [error.message for error in Draft202012Validator(strict(SCHEMA)).iter_errors(board)]


def strict(schema: Any) -> Any:
    """Return the schema that allows no other keys, so that one without a description is found."""
    if isinstance(schema, dict):
        more = {"additionalProperties": False} if "properties" in schema else {}
        return {key: strict(value) for key, value in schema.items()} | more
    return [strict(one) for one in schema] if isinstance(schema, list) else schema


def test_every_answer_is_valid(directory: Directory) -> None:
    """An answer with pools in trouble, pools of no process and unlimited pools has what the schema says and no more."""
    process = directory.process()
    for row in range(3):
        process.hold(NOW - 100, row, site="app:pay:88", holder=-7, server_pid=4711, waits_since=NOW - 40)
    process.wait(NOW - 40)
    process.count(5)
    directory.process("gone").kill()
    directory.process("unlimited", size=float("nan"), max_overflow=float("nan"))
    (directory.path / "worker-009").write_bytes(b"no segment" * 1000)
    directory.board()
    process.count(5)
    board = json.loads(json.dumps(directory.board(after=6.0)))
    assert board["pools"][0]["rates"] is not None
    assert [] == faults(board)


def test_a_wrong_answer_is_found(directory: Directory) -> None:
    """The check above notices a missing key, another key and a wrong type."""
    board: Any = directory.board()
    for wrong in ({**board, "more": 1}, {**board, "version": "1"}, dict(list(board.items())[1:])):
        assert 1 == len(faults(wrong))


def test_documentation_is_current() -> None:
    """The schema in docs is what the generator writes."""
    assert generate_board.text() == generate_board.FILE.read_text("utf-8")
