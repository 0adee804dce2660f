# SPDX-License-Identifier: Apache-2.0
"""The checks of the documentation's blocks find what is wrong with a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import code_blocks, shell_lines, wording

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest


def test_blocks_are_found(tmp_path: Path) -> None:
    """Blocks are found with their language and line, also those in a list, and one without a language has none."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\nx = 1\n```\n\n* item\n\n  ```sh\n  make test\n  ```\n\n```\nplain\n```\n"
    )
    found = [(block.line, block.language, block.text) for block in code_blocks.blocks(page)]
    assert [(3, "python", "x = 1\n"), (9, "sh", "make test\n"), (13, "", "plain\n")] == found


def test_commands_and_output() -> None:
    """What a reader types is told from what a program answers; a document belongs to its command."""
    console = "$ a \\\n    --b\nanswer\n$ cat > f <<END\nx: 1\nEND\n$ c\n"
    assert code_blocks.commands(console) == "a \\\n    --b\ncat > f <<END\nx: 1\nEND\nc\n"
    assert code_blocks.output(console) == "answer"


@pytest.mark.parametrize(
    "script",
    [
        "sqlalchemy-pool-exporter serve --no-such-option",
        "kubectl exec orders-abc -c app -- sqlalchemy-pool-exporter tip --once",
        "sqlalchemy-pool-exporter run -- sqlalchemy-pool-exporter tip",
        "sh -c 'make no-such-target'",
        "echo $(make no-such-target)",
        "pip install 'sqlalchemy-pool-exporter[no-such-extra]'",
        "make no-such-target",
        "gunicorn --workers 4 examples.servers.gone:app",
        "python -m tools.generate_gone",
        "curl -s",
        "no-such-program | head",
        "echo 'unfinished",
    ],
)
def test_wrong_commands_are_found(script: str) -> None:
    """A command that its program would refuse is a fault."""
    assert shell_lines.faults(script)


def test_right_commands_pass() -> None:
    """Commands that their programs take are none, with what a shell does to them."""
    script = "X=1 make test  # it's a comment\ncat > f <<END\nno command\nEND\n"
    assert [] == shell_lines.faults(f"{script}sqlalchemy-pool-exporter top --once | head -4 > f\n")


def test_changed_messages_are_found() -> None:
    """A message that the package writes passes with any values; one of other words does not."""
    message = (
        "held: 3 connections are out for over 1 min (leak_after); the oldest is held for 2 min 5 s, by a:b:1"
    )
    assert [] == wording.unexplained(message)
    assert wording.unexplained(message.replace("the oldest is held for", "the eldest has been out for"))
    assert wording.unexplained(message.replace("held:", "withheld:"))
