# SPDX-License-Identifier: Apache-2.0
"""A worker process that serves both applications: ``python -m demo.worker ASYNCPG_URL PSYCOPG_URL``.

It prints the applications' URLs and runs until its standard input ends, so that it stops even if the demo is killed.
"""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import make_url

from .apps import serving_billing, serving_orders
from .cli import keep_quiet


async def main(asyncpg_url: str, psycopg_url: str) -> None:
    """Serve both applications."""
    keep_quiet()
    async with (
        serving_orders(make_url(asyncpg_url)) as orders,
        serving_billing(make_url(psycopg_url)) as billing,
    ):
        print("serving", orders, billing, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
