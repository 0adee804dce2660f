# SPDX-License-Identifier: Apache-2.0
"""NullPool behind pgbouncer, which pools the connections to the server.

``DATABASE_URL`` is postgresql+psycopg://… with the address of pgbouncer.
"""

import os

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from sqlalchemy_pool_exporter import instrument

engine = create_engine(
    os.environ["DATABASE_URL"],
    poolclass=NullPool,  # each checkout is a connection to pgbouncer, which is cheap
    connect_args={
        "application_name": "orders",  # pgbouncer hands it on to the server's connection
        "prepare_threshold": None,  # with pool_mode = transaction the next statement may run on another connection
    },
)
instrument(engine, name="orders")
