# SPDX-License-Identifier: Apache-2.0
"""A WSGI application, for ``gunicorn examples.servers.wsgi:app``; its response is the process id."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

engine = create_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=1)
instrument(engine, name="orders")


def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
