# SPDX-License-Identifier: Apache-2.0
"""Cloud SQL by its connector, with IAM authentication: a ``creator`` makes the connections, so the URL has no address.

``INSTANCE`` is project:region:instance, ``DB_USER`` an IAM principal, ``DB_NAME`` the database.
"""

import os
from typing import Any

from google.cloud.sql.connector import Connector
from sqlalchemy import create_engine

from sqlalchemy_pool_exporter import instrument

connector = Connector(refresh_strategy="lazy")


def connect() -> Any:
    """Open a connection: what it takes to renew certificate and token is part of connect_seconds."""
    return connector.connect(
        os.environ["INSTANCE"],
        "pg8000",
        user=os.environ["DB_USER"],
        db=os.environ["DB_NAME"],
        enable_iam_auth=True,
        application_name="orders",
    )


engine = create_engine("postgresql+pg8000://", creator=connect, pool_size=5, max_overflow=10)
instrument(engine, name="orders")  # by default the name comes from the URL, which says nothing here
