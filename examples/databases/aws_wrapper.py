# SPDX-License-Identifier: Apache-2.0
"""Aurora through the AWS Advanced Python Wrapper.

``DATABASE_URL`` is postgresql+aws_wrapper_psycopg://…
"""

import os

from sqlalchemy import create_engine

from sqlalchemy_pool_exporter import instrument

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={
        "application_name": "orders",
        "plugins": "failover_v2,host_monitoring_v2",  # the wrapper's, not SQLAlchemy's
    },
)
instrument(engine, name="orders")
