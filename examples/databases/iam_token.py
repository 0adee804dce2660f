# SPDX-License-Identifier: Apache-2.0
"""A token that expires as password, here of AWS RDS: each new connection asks for one.

``DATABASE_URL`` is postgresql+psycopg://user@host:5432/database without a password, ``AWS_REGION`` the server's region.
"""

import os
from typing import Any

import boto3
from sqlalchemy import create_engine, event

from sqlalchemy_pool_exporter import instrument

rds = boto3.client("rds", region_name=os.environ["AWS_REGION"])

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")


def token() -> str:
    """Return a token for one connection. It is signed here and lasts 15 minutes; open connections outlive it."""
    url = engine.url
    return str(
        rds.generate_db_auth_token(DBHostname=url.host, Port=url.port or 5432, DBUsername=url.username)
    )


@event.listens_for(engine, "do_connect")  # time and errors of this are those of the connect
def give_token(_dialect: Any, _record: Any, _arguments: list[Any], parameters: dict[str, Any]) -> None:
    parameters["password"] = token()
