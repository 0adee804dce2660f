# SPDX-License-Identifier: Apache-2.0
"""A primary and its read replicas: two engines, two pool names, and a session that chooses.

``PRIMARY_URL`` and ``REPLICA_URL`` are postgresql+psycopg://…; the second may name several hosts, which are one pool
(``postgresql+psycopg://user@/orders?host=replica1:5432&host=replica2:5432``).
"""

import os
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.dml import UpdateBase

from sqlalchemy_pool_exporter import instrument


def _engine(variable: str, name: str) -> Engine:
    engine = create_engine(
        os.environ[variable],
        pool_size=5,
        max_overflow=10,
        connect_args={"application_name": "orders"},  # one application, two servers
    )
    instrument(engine, name=name)
    return engine


# The probes of the two servers have these names in their `pools:`.
primary = _engine("PRIMARY_URL", "orders-primary")
replica = _engine("REPLICA_URL", "orders-replica")


class RoutingSession(Session):
    """Reads from the replica and writes to the primary, as SQLAlchemy's documentation shows it."""

    def get_bind(self, *args: Any, clause: Any = None, **options: Any) -> Engine:  # noqa: ARG002 - SQLAlchemy's signature
        return primary if self._flushing or isinstance(clause, UpdateBase) else replica


Orders = sessionmaker(class_=RoutingSession)
