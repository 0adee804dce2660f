# SPDX-License-Identifier: Apache-2.0
"""Each database recipe with real servers, in a process of its own: what it says of itself is what happens."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.paths import ROOT
from tests.support.probed_server import SECRET, ProbedServer
from tests.support.recipes import NAME, checkouts, database_url, run_recipe
from tests.support.samples import key
from tests.support.sidecar import Sidecar
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pg import Server as DatabaseServer

pytestmark = pytest.mark.newest


def needs(module: str) -> None:
    """Skip a test of a package that is not installed; find_spec, since an import could take a second."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package's parent
        found = None
    if found is None:
        pytest.skip(f"could not import {module!r}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ProbedServer]:
    """Run a server that asks for a password, and that can have a replica."""
    cluster = ProbedServer()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory)


def url_of(cluster: ProbedServer, password: str = f":{SECRET}") -> str:
    return f"postgresql+psycopg://postgres{password}@127.0.0.1:{cluster.port}/postgres"


def test_replicas(cluster: ProbedServer) -> None:
    """Reads go to the server in recovery, writes to the other, and each has a pool name of its own."""
    program = """
        from sqlalchemy import func, select, text
        from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
        from examples.databases.replicas import Orders, primary

        class Base(DeclarativeBase): pass

        class Order(Base):
            __tablename__ = "replicated"
            id: Mapped[int] = mapped_column(primary_key=True)

        Base.metadata.create_all(primary)
        with Orders.begin() as session:
            for _ in range(2):
                print(session.scalar(select(func.pg_is_in_recovery())))
            session.add(Order(id=1))
        with primary.connect() as connection:
            print(connection.scalar(text("SELECT count(*) FROM replicated")))
    """
    with cluster.replica() as replica:
        said, samples = run_recipe(program, PRIMARY_URL=url_of(cluster), REPLICA_URL=url_of(replica))
    assert ["True", "True", "1"] == said.split()
    assert (3, 1) == (checkouts(samples, "orders-primary"), checkouts(samples, "orders-replica"))


def test_tenants(server: DatabaseServer) -> None:
    """Each tenant has its own database; sums have all, also of closed engines; few connections stay open."""
    tenants = ["tenant_a", "tenant_b", "tenant_c", "tenant_d"]
    with psycopg.connect(server.dsn("tenants"), autocommit=True) as admin:
        for tenant in tenants:
            admin.execute(f"CREATE DATABASE {tenant}")
    program = f"""
        import gc
        from sqlalchemy import text
        from examples.databases.tenants import Tenants

        tenants = Tenants(limit=2)
        for tenant in {tenants} + ["tenant_d", "tenant_a"]:
            with tenants.engine(tenant).connect() as connection:
                print(connection.scalar(text("SELECT current_database()")))
        gc.collect()  # of the engines that were closed
    """
    url = database_url(server, "psycopg").removesuffix(server.database) + "{tenant}"
    said, samples = run_recipe(program, TENANT_URL=url)
    assert [*tenants, "tenant_d", "tenant_a"] == said.split()
    assert (6, 5) == (checkouts(samples, "tenants"), samples[key("connects_total", pool="tenants")])
    assert (2, 10) == (samples[key("instances", pool="tenants")], samples[key("capacity", pool="tenants")])
    assert 2 == samples[key("connections", pool="tenants", state="idle")]


def test_sqlmodel(server: DatabaseServer) -> None:
    """A session of SQLModel takes its connections from the instrumented pool."""
    needs("sqlmodel")
    program = """
        from sqlmodel import SQLModel
        from examples.databases.sqlmodel_app import engine, place

        SQLModel.metadata.create_all(engine)
        print(place("tea"), place("tea"))
    """
    said, samples = run_recipe(program, DATABASE_URL=database_url(server, "psycopg"))
    assert ["1", "2"] == said.split()
    # create_all(), and two transactions of each session: its commit() gives the connection back.
    assert 5 == checkouts(samples)


def test_iam_token(cluster: ProbedServer) -> None:
    """Each connection has its own token, which boto3 signs; its time and its refusal are those of the connect."""
    needs("boto3")
    program = f"""
        import time
        from sqlalchemy import event, exc
        from examples.databases import iam_token
        from examples.databases.iam_token import engine

        print(iam_token.token()[:60])
        tokens = ["expired", "{SECRET}", "{SECRET}"]

        def token():
            time.sleep(0.2)
            return tokens.pop(0)

        iam_token.token = token  # our server knows no IAM
        try:
            engine.connect()
        except exc.OperationalError:
            print("refused")
        with engine.connect(), engine.connect():
            pass
        with engine.connect():
            print(tokens)
    """
    variables = {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    said, samples = run_recipe(program, DATABASE_URL=url_of(cluster, password=""), **variables)
    token, *rest = said.split()
    assert token.startswith(f"127.0.0.1:{cluster.port}/?Action=connect&DBUser=postgres")
    assert ["refused", "[]"] == rest
    assert 1 == samples[key("connect_errors_total", pool=NAME)]
    assert 2 == samples[key("connects_total", pool=NAME)]
    assert samples[key("connect_seconds_sum", pool=NAME)] >= 3 * 0.2


# Google's network is all that this replaces: the connector itself is real, and so are the driver and the server.
CLOUD_SQL = """
    import pg8000.dbapi
    from google.cloud.sql.connector import Connector

    async def connect_async(self, instance, driver, *, db, enable_iam_auth, **options):
        assert (instance, driver, enable_iam_auth) == ("project:region:orders", "pg8000", True)
        return pg8000.dbapi.connect(host="127.0.0.1", port={port}, database=db, **options)

    Connector.connect_async = connect_async
    from sqlalchemy import text
    from examples.databases.cloud_sql import connector, engine

    with engine.connect() as connection:
        print(connection.scalar(text("SELECT current_setting('application_name')")))
    engine.dispose()
    connector.close()
"""


def test_cloud_sql(server: DatabaseServer, tmp_path: Path) -> None:
    """The connector's connections are those of the pool, which has the name that it was given."""
    needs("google.cloud.sql.connector")
    needs("pg8000")
    account = {
        "type": "authorized_user",
        "client_id": "test",
        "client_secret": "test",
        "refresh_token": "test",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    said, samples = run_recipe(
        CLOUD_SQL.format(port=server.port),
        INSTANCE="project:region:orders",
        DB_USER=server.user,
        DB_NAME=server.database,
        GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "account.json"),
    )
    assert NAME == said.strip()
    assert (1, 1) == (checkouts(samples), samples[key("connects_total", pool=NAME)])


def test_aws_wrapper(server: DatabaseServer) -> None:
    """The wrapper's own dialect, on a PostgreSQL that is no Aurora: its connections are those of the pool."""
    needs("aws_advanced_python_wrapper")
    program = """
        from sqlalchemy import text
        from examples.databases.aws_wrapper import engine

        for _ in range(2):
            with engine.connect() as connection:
                print(connection.scalar(text("SELECT current_setting('application_name')")))
                print(type(connection.connection.dbapi_connection).__name__)
    """
    said, samples = run_recipe(program, DATABASE_URL=database_url(server, "aws_wrapper_psycopg"))
    assert [NAME, "AwsWrapperConnection"] * 2 == said.split()
    assert (2, 1) == (checkouts(samples), samples[key("connects_total", pool=NAME)])


MIGRATION = """
import sqlalchemy
from alembic import op

revision = "1"
down_revision = None

def upgrade():
    op.create_table("migrated", sqlalchemy.Column("by", sqlalchemy.Text()))
    op.execute("INSERT INTO migrated VALUES (current_setting('application_name'))")
"""


def test_alembic(server: DatabaseServer, tmp_path: Path) -> None:
    """After ``alembic upgrade head`` has ended, a sidecar shows its connection; the server knew it by its own name."""
    needs("alembic")
    shared, scripts = tmp_path / "pools", tmp_path / "scripts"
    for directory in (shared, scripts, scripts / "versions"):
        directory.mkdir()
    shutil.copy(ROOT / "examples" / "databases" / "alembic_env.py", scripts / "env.py")
    (scripts / "versions" / "1_orders.py").write_text(MIGRATION)
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = scripts\npath_separator = os\n")
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=tmp_path,
        check=True,
        timeout=SECONDS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "DATABASE_URL": database_url(server, "psycopg"),
            "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        },
    )
    with psycopg.connect(server.dsn("alembic")) as connection:
        assert [("orders-migrations",)] == connection.execute("SELECT by FROM migrated").fetchall()
    with Sidecar("--directory", shared) as sidecar:
        assert 1 == sidecar.value("checkouts_total", pool="migrations")
        assert 1 == sidecar.value("closes_total", pool="migrations", reason="unpooled")
