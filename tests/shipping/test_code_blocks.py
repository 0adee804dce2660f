# SPDX-License-Identifier: Apache-2.0
"""Every fenced block of the documentation is run, or compared with what is run, or checked by its own tool."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support import charts, code_blocks, shell_lines, wording
from tests.support.paths import ROOT
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import pg
    from tests.support.code_blocks import Block

pytestmark = pytest.mark.newest

BLOCKS = [block for path in code_blocks.PAGES for block in code_blocks.blocks(path)]
BY_PAGE = [list(found) for _, found in groupby(BLOCKS, key=lambda block: block.page)]

# Blocks that fail their check and are right: page, first line, and who checks them instead, or why nobody can.
EXCEPTIONS = {
    ("docs/configuration.md", "$ sqlalchemy-pool-exporter check-config --config exporter.yaml"): (
        "tests/sidecar/test_config.py has the faulty file, and compares the output"
    ),
    ("docs/databases.md", "GRANT SELECT ON performance_schema.data_lock_waits TO pool_exporter@'%';"): (
        "tables that MySQL 8 has and MariaDB has not"
    ),
    ("docs/design.md", "application process(es)                          sidecar process"): "a drawing",
}

# These have a test of their own.
ELSEWHERE = {"python", "mysql"}

each = pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language not in ELSEWHERE], ids=str
)
page_by_page = pytest.mark.parametrize(
    "page",
    [page for page in BY_PAGE if any(block.language == "python" for block in page)],
    ids=lambda page: page[0].page,
)


@pytest.fixture
def faults_of(tmp_path: Path, server: pg.Server) -> Callable[[Block], str]:
    """Return a function that says what is wrong with a block."""

    def check(block: Block) -> str:
        if not block.language:
            return "the block has no language"
        if is_in_a_file(block.text):
            return ""
        checker = CHECKERS.get(block.language)
        if checker is None:
            return f"no check for the language {block.language!r}"
        try:
            return checker(block.text, tmp_path, server)
        except Exception as error:  # noqa: BLE001 - each parser has errors of its own
            return f"{type(error).__name__}: {error}"

    return check


@each
def test_block(block: Block, faults_of: Callable[[Block], str]) -> None:
    """A block that is no Python is right by its own tool, or is a known exception that is still needed."""
    fault = faults_of(block)
    if (block.page, block.first) in EXCEPTIONS:
        assert fault != "", "this needs no exception"
    else:
        assert fault == ""


def test_every_exception_is_of_a_block() -> None:
    """Each exception names a block that exists."""
    assert set() == set(EXCEPTIONS) - {(block.page, block.first) for block in BLOCKS}


@page_by_page
def test_python(page: list[Block], server: pg.Server) -> None:
    """The Python blocks of a page run one after the other, or are parts of an example that a test runs."""
    own = [block for block in page if block.language == "python" and not is_in_a_file(block.text)]
    program = [(str(block), runnable(block.text, server)) for block in own]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "run_blocks.py", database(server)],
        input=json.dumps(program),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.requires("mariadbd", "mariadb-install-db")
def test_mysql() -> None:
    """The statements for MySQL and MariaDB run on a MariaDB; those of MySQL alone do not."""
    pymysql = pytest.importorskip("pymysql")
    from tests.support import mariadb  # noqa: PLC0415 - imports pymysql

    with mariadb.running() as server, server.admin() as admin:
        for block in (block for block in BLOCKS if block.language == "mysql"):
            statements = [one for one in block.text.split(";") if one.strip()]
            if (block.page, block.first) in EXCEPTIONS:
                with pytest.raises(pymysql.err.MySQLError):
                    admin.execute(statements[0])
            else:
                for statement in statements:
                    admin.execute(statement)


def is_in_a_file(text: str) -> bool:
    """Return whether a block of several lines is a part of a shipped file, all of which tests run."""
    return text.count("\n") > 1 and any(text.strip() in content for content in SHIPPED)


SHIPPED = [
    path.read_text("utf-8", "replace")
    for name in ("config", "examples", "demo")
    for path in (ROOT / name).rglob("*")
    if path.is_file() and path.suffix not in {".md", ".pyc"}
]


def database(server: pg.Server) -> str:
    """Return a URL of the server."""
    return f"postgresql+psycopg://{server.user}@{server.host}:{server.port}/{server.database}"


def runnable(text: str, server: pg.Server) -> str:
    """Return a block with this server's address instead of the reader's, and with a free port."""
    place = database(server).partition("://")[2]
    text = re.sub(r"(postgresql(?:\+\w+)?)://[^\"'?\s]*", rf"\1://{place}", text)
    text = text.replace("postgresql://", "postgresql+psycopg://")
    return re.sub(r"\bport=\d+", lambda _: f"port={free_port()}", text)


def test_the_first_example(server: pg.Server, tmp_path: Path) -> None:
    """The example at the top of the README serves the pool, as the command below it asks for."""
    (code,) = [block.text for block in BLOCKS if block.page == "README.md" and block.language == "python"]
    ask = """
import re, urllib.request
with engine.connect():
    port = re.search(r"port=(\\d+)", CODE)[1]
    answer = urllib.request.urlopen(f"http://localhost:{port}/metrics").read().decode()
assert 'sqlalchemy_pool_connections{pool="orders",state="in_use"} 1.0' in answer, answer
assert 'sqlalchemy_pool_capacity{pool="orders"} 15.0' in answer, answer
"""
    code = runnable(code, server)
    subprocess.run([sys.executable, "-c", f"CODE = {code!r}\n{code}{ask}"], check=True, timeout=60)


# The checks: each takes the text, a directory of its own and a PostgreSQL, and returns what is wrong.


def check_console(text: str, *_: object) -> str:
    """Check the commands by their parsers, and the output by the words of the programs that write it."""
    strange = wording.unexplained(code_blocks.output(text))
    return "\n".join([*shell_lines.faults(code_blocks.commands(text)), *map(repr, strange)])


def check_sh(text: str, *_: object) -> str:
    return "\n".join(shell_lines.faults(text))


def check_text(text: str, *_: object) -> str:
    """Check a message by its words, and lines of an exposition by the names of the metrics."""
    samples = re.findall(
        r"^(sqlalchemy_pool_\w+)(?:\{.*\})? [\d.e+]+(?: # \{.*\}[ \d.]+)?$", text, re.MULTILINE
    )
    if samples and len(samples) == len(text.strip().splitlines()):
        page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
        return "\n".join(name for name in samples if name.removesuffix("_bucket") not in page)
    return "\n".join(map(repr, wording.unexplained(text)))


def check_promql(text: str, *_: object) -> str:
    import promql_parser  # noqa: PLC0415 - not installed with the oldest dependencies

    for query in re.split(r"\n\s*\n", text.strip()):
        promql_parser.parse(query)
    return ""


def check_sql(text: str, _directory: Path, server: pg.Server) -> str:
    """Run the statements on a real PostgreSQL, and roll back what they did."""
    import psycopg  # noqa: PLC0415

    with psycopg.connect(server.dsn("documentation")) as connection:
        connection.execute(text.encode())
        connection.rollback()
    return ""


def check_json(text: str, *_: object) -> str:
    json.loads(text)
    return ""


def check_toml(text: str, *_: object) -> str:
    tomllib.loads(text)
    return ""


def check_ini(text: str, *_: object) -> str:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    parser.read_string(text)
    return "" if parser.sections() else "there is no section"


def check_yaml(text: str, directory: Path, _server: pg.Server) -> str:
    """Check a document by the program that reads it, which its keys tell."""
    for document in yaml.safe_load_all(text):
        keys = set(document)
        for known, check in YAML.items():
            if keys & known:
                if fault := check(document, directory):
                    return fault
                break
        else:
            return f"no program is known for {sorted(keys)}"
    return ""


def check_sidecar(document: Any, directory: Path) -> str:
    from sqlalchemy_pool_exporter.sidecar.config import load  # noqa: PLC0415

    for database in document.get("databases", ()):
        if "dsn_file" in database:
            database["dsn_file"] = "dsn"
    if "headers_file" in document.get("otlp", {}):
        document["otlp"]["headers_file"] = "headers"
        (directory / "headers").write_text("authorization=Bearer%20secret")
    (directory / "dsn").write_text("postgresql://monitor@db/orders")
    (directory / "exporter.yaml").write_text(yaml.safe_dump(document))
    load(directory / "exporter.yaml")
    return ""


def check_web(document: Any, directory: Path) -> str:
    import trustme  # noqa: PLC0415

    from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig  # noqa: PLC0415

    tls, authority = document["tls_server_config"], trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(directory / tls["key_file"])
    leaf.cert_chain_pems[0].write_to_path(directory / tls["cert_file"])
    authority.cert_pem.write_to_path(directory / tls["client_ca_file"])
    (directory / "web.yaml").write_text(yaml.safe_dump(document))
    WebConfig(directory / "web.yaml")
    return ""


def check_prometheus(document: Any, directory: Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool not found on the PATH")
    (directory / "prometheus.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", directory / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def check_chart(document: Any, _directory: Path) -> str:
    charts.render(document)
    return ""


def check_manifest(document: Any, _directory: Path) -> str:
    import kubernetes_validate  # noqa: PLC0415

    kubernetes_validate.validate(document, "1.30", strict=True)
    return ""


def check_container(document: Any, directory: Path) -> str:
    """Check a part of a container in a pod that has it."""
    container = {"name": "app", "image": "orders", **document}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "orders"},
        "spec": {"containers": [container]},
    }
    return check_manifest(pod, directory)


def check_compose(document: Any, _directory: Path) -> str:
    services = document["services"].values()
    return "" if all({"image", "build"} & set(service) for service in services) else "a service has no image"


# The first row that has a key of the document says which program reads it.
YAML: dict[frozenset[str], Callable[[Any, Path], str]] = {
    frozenset({"apiVersion"}): check_manifest,
    frozenset({"readinessProbe", "livenessProbe", "env"}): check_container,
    frozenset({"services"}): check_compose,
    frozenset({"scrape_configs", "rule_files", "alerting"}): check_prometheus,
    frozenset({"tls_server_config", "basic_auth_users"}): check_web,
    frozenset({"config", "serviceMonitor", "prometheusRule", "dashboards", "image"}): check_chart,
    frozenset({"databases", "log", "metrics", "otlp", "segments", "web"}): check_sidecar,
}
CHECKERS: dict[str, Callable[[str, Path, pg.Server], str]] = {
    "console": check_console,
    "ini": check_ini,
    "json": check_json,
    "promql": check_promql,
    "sh": check_sh,
    "sql": check_sql,
    "text": check_text,
    "toml": check_toml,
    "yaml": check_yaml,
}
