# SPDX-License-Identifier: Apache-2.0
"""The runbooks as their readers meet them: the queries and commands in their fenced blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT
from tests.support.wait import SECONDS

RUNBOOKS = ROOT / "docs" / "runbooks"
INDEX = RUNBOOKS / "README.md"


class Block(NamedTuple):
    """A fenced block: its language, and its lines; those of ``console`` without the prompt."""

    kind: str
    text: str


def page(alert: str) -> Path:
    """Return the runbook of an alert, whose name may lack its prefix."""
    return RUNBOOKS / f"SQLAlchemyPool{alert.removeprefix('SQLAlchemyPool')}.md"


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [
        Block(kind, re.sub(r"^\$ ", "", text, flags=re.MULTILINE) if kind == "console" else text)
        for kind, text in found
    ]


def to_libpq() -> str:
    """Return the script that the index gives for connecting with ``psql``."""
    (script,) = [block.text for block in blocks(INDEX) if block.kind == "sh"]
    return script


def run_shell(script: str, given: str = "", *, path: str = "", **environment: str) -> str:
    """Run a script as its reader does, and return all that it puts out; ``path`` comes first on the PATH."""
    directories = [path, str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, **environment, "PATH": os.pathsep.join(filter(None, directories)), "PAGER": "cat"},
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * SECONDS,
        check=False,
    )
    return done.stdout


def libpq_variables(url: str) -> dict[str, str]:
    """Return the variables that the script sets for a URL of SQLAlchemy."""
    lines = run_shell(f"{to_libpq()}\nenv", DATABASE_URL=url)
    return dict(re.findall(r"^(PG\w+)=(.*)$", lines, re.MULTILINE))
