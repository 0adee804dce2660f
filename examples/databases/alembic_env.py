# SPDX-License-Identifier: Apache-2.0
"""Alembic's ``env.py``: the connections of a migration are shown beside the application's.

That takes ``SQLALCHEMY_POOL_EXPORTER_DIR``: a migration ends before anybody can scrape it, but its counts stay in the
directory, and the sidecar or the application shows them. ``DATABASE_URL`` is postgresql+psycopg://…
"""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from sqlalchemy_pool_exporter import instrument

target_metadata = None  # your models' metadata, for --autogenerate


def run_migrations() -> None:
    engine = create_engine(
        os.environ["DATABASE_URL"],
        poolclass=NullPool,
        # A name of its own: a migration that waits for a lock is told from the application that has it.
        connect_args={"application_name": "orders-migrations"},
    )
    instrument(engine, name="migrations")
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()


run_migrations()
