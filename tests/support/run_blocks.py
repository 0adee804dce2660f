# SPDX-License-Identifier: Apache-2.0
"""Runs the Python blocks of a page one after the other, as its reader types them into one program.

Standard input has a list of pairs: what a traceback calls the block, and its code. What the blocks take for granted is
there: ``url`` is that of a database, and ``engine`` an engine with it. In the end ``engine``, which a block may have
replaced, must still work.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sys
from types import ModuleType
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine


def run(blocks: list[tuple[str, str]], url: str) -> None:
    page: Any = ModuleType("page")
    sys.modules["page"] = page
    page.__dict__.update(url=url, create_engine=create_engine, engine=create_engine(url))
    with asyncio.Runner() as runner:
        for name, source in blocks:
            code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, page.__dict__))  # noqa: S307 - our own documentation
            else:
                exec(code, page.__dict__)  # noqa: S102 - as above
        if isinstance(page.engine, AsyncEngine):
            runner.run(_ask(page.engine))
        else:
            with page.engine.connect() as connection:
                assert connection.scalar(text("SELECT 1")) == 1


async def _ask(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await engine.dispose()


if __name__ == "__main__":
    run(json.load(sys.stdin), sys.argv[1])
