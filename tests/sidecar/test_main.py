# SPDX-License-Identifier: Apache-2.0
"""The command ``sqlalchemy-pool-exporter`` as a process: start, scrape, reload, end and error messages."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine

from sqlalchemy_pool_exporter import instrument
from tests.support.paths import ROOT
from tests.support.samples import key
from tests.support.sidecar import OPENMETRICS, Sidecar, run
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server

# What is of the command alone, from text to exit status. What it calls is tested with the oldest dependencies, too:
# configuration, validation, reload and probes.
of_the_command = pytest.mark.newest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "segments"
    directory.mkdir()
    return directory


@pytest.fixture
def config(tmp_path: Path, directory: Path) -> Path:
    config = tmp_path / "exporter.yaml"
    config.write_text(f"segments: {{directory: {directory}}}\n")
    return config


@pytest.mark.requires("promtool")
def test_serve(directory: Path) -> None:
    """A scrape in either format shows a worker and its forked child, and promtool accepts the text format."""
    with Worker(directory) as worker, Sidecar("--directory", directory) as sidecar:
        worker.do("pool", "orders")
        worker.do("pool", "unlimited", -1)
        worker.do("cycle", "orders", 3)
        worker.do("hold", "orders", 1)
        child = worker.do("fork", "orders", 2)
        try:
            assert sidecar.value("checkouts_total", pool="orders") == 6
            assert sidecar.value("connections", pool="orders", worker="000", state="in_use") == 1
            assert sidecar.value("connections", pool="orders", worker="001", state="in_use") == 0
            assert sidecar.value("exporter_workers", state="live") == 2
            assert sidecar.value("capacity", pool="orders") == 6
            assert sidecar.value("capacity", pool="unlimited") is None
            for accept in ("text/plain", OPENMETRICS):
                status, text = sidecar.get(accept=accept)
                assert status == 200
                assert text.endswith("# EOF\n") == (accept == OPENMETRICS)
                # promtool reads only the text format. OpenMetrics differs from it by its end and by exemplars.
                lint = subprocess.run(
                    ["promtool", "check", "metrics"],
                    input=sidecar.get(accept="text/plain")[1] if accept == OPENMETRICS else text,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
        finally:
            os.kill(child, signal.SIGKILL)
        worker.kill()
        assert eventually(lambda: sidecar.value("exporter_workers", state="gone") == 2)
        assert sidecar.value("checkouts_total", pool="orders") == 6
        assert sidecar.value("connections", pool="orders", worker="000", state="in_use") is None
        assert sidecar.end() == 0


@of_the_command
def test_fewer_series(directory: Path, config: Path) -> None:
    """What `metrics.drop` names is not shown, of histograms only the `metrics.buckets` are; the rest is as before."""
    config.write_text(
        f"segments: {{directory: {directory}}}\n"
        "metrics:\n"
        "  drop: [sqlalchemy_pool_ping_seconds, sqlalchemy_pool_detaches_total, sqlalchemy_pool_info]\n"
        "  buckets: [0.01, 0.25, 1]\n"
    )
    with (
        Worker(directory) as worker,
        Sidecar("--directory", directory) as sidecar,
        Sidecar("--config", config) as other,
    ):
        worker.do("pool", "orders")
        before, after = sidecar.get()[1], other.get()[1]
    dropped = {"ping_seconds_bucket", "ping_seconds_count", "ping_seconds_sum", "detaches_total", "info"}
    assert _names(before) - _names(after) == {f"sqlalchemy_pool_{name}" for name in dropped}
    bounds = set(re.findall(r'sqlalchemy_pool_checkout_wait_seconds_bucket\{le="([^"]+)"', after))
    assert {"0.01", "0.25", "1.0", "+Inf"} == bounds


def _names(exposition: str) -> set[str]:
    return set(re.findall(r"^([a-z_]+)(?=[ {])", exposition, re.MULTILINE))


def test_board(directory: Path) -> None:
    """The board shows who holds what in each process; without a directory it says that there is none."""
    with Worker(directory) as worker, Sidecar("--directory", directory) as sidecar:
        worker.do("pool", "orders")
        worker.do("hold", "orders", 1)
        board = json.loads(sidecar.get("/api/v1/pools")[1])
    assert [("orders", 1)] == [(pool["name"], pool["state"]["in_use"]) for pool in board["pools"]]
    (held,) = board["held"]
    assert (str(worker.pid), "000") == (held["pid"], held["worker"])
    with Sidecar() as sidecar:
        board = json.loads(sidecar.get("/api/v1/pools")[1])
    assert ([], "no directory of applications is configured (segments.directory)") == (
        board["pools"],
        board["note"],
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop(directory: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end the exporter with exit status 0 and without a traceback."""
    with Sidecar("--directory", directory) as sidecar:
        assert sidecar.end(number) == 0
        assert "Traceback" not in "".join(sidecar.log)


@of_the_command
def test_restart_counts_on(directory: Path) -> None:
    """A restarted sidecar shows the same counts, although every worker is gone."""
    with Worker(directory) as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 5)
    for _ in range(2):
        with Sidecar("--directory", directory) as sidecar:
            assert sidecar.value("checkouts_total", pool="orders") == 5


# -- reload


def test_sighup(directory: Path, config: Path) -> None:
    """SIGHUP applies a valid file; an invalid one is logged, sets a metric to 0, and leaves the old one in force."""
    with Worker(directory) as worker, Sidecar("--config", config) as sidecar:
        worker.do("pool", "orders")
        assert sidecar.value("size", pool="orders", worker="000") == 2
        text = config.read_text()
        config.write_text(text + "metrics: {worker_label: false}\n")
        sidecar.send(signal.SIGHUP)
        sidecar.wait_for("configuration reloaded")
        assert sidecar.value("size", pool="orders") == 2
        config.write_text(text + "metrics: {worker_label: perhaps}\n")
        sidecar.send(signal.SIGHUP)
        said = sidecar.wait_for("not reloaded, the old configuration stays: .*(?:\n .*)*")
        assert "metrics.worker_label" in said
        assert sidecar.value("exporter_config_last_reload_successful") == 0
        assert sidecar.value("size", pool="orders") == 2
        config.write_text(text)
        sidecar.send(signal.SIGHUP)
        assert eventually(lambda: sidecar.value("exporter_config_last_reload_successful") == 1)
        assert sidecar.value("size", pool="orders", worker="000") == 2


@of_the_command
def test_reload_forgets_no_count(directory: Path, config: Path) -> None:
    """The counts of a deleted file survive a reload."""
    with Worker(directory) as worker, Sidecar("--config", config) as sidecar:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 3)
        assert sidecar.value("checkouts_total", pool="orders") == 3
        (directory / "worker-000").unlink()
        config.write_text(config.read_text() + "metrics: {worker_label: false}\n")
        sidecar.send(signal.SIGHUP)
        sidecar.wait_for("configuration reloaded")
        assert sidecar.value("checkouts_total", pool="orders") == 3


def test_reload_over_http(directory: Path, config: Path) -> None:
    """POST /-/reload gets 403 unless it is enabled; if it is, the answer lists the faults of an invalid file."""
    with Sidecar("--config", config) as sidecar:
        assert sidecar.get("/-/reload", method="POST")[0] == 403
    config.write_text(config.read_text() + "web: {enable_lifecycle: true}\n")
    with Sidecar("--config", config) as sidecar:
        assert sidecar.get("/-/reload", method="POST") == (200, "reloaded\n")
        config.write_text("web: {colour: red}\n")
        status, text = sidecar.get("/-/reload", method="POST")
        assert status == 500
        assert "web.colour" in text
        assert sidecar.value("exporter_config_last_reload_successful") == 0


# -- messages


def test_port_taken(directory: Path) -> None:
    """A taken port is reported in one line, with exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("serve", "--directory", directory, "--listen-address", address)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"sqlalchemy-pool-exporter: cannot listen on '{address}'")


@of_the_command
@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_wrong_configuration(config: Path, command: str) -> None:
    """Every fault is listed with the path of its option, and the exit status is 2."""
    config.write_text(
        "web: {colour: red, max_request_bytes: many}\n"
        "databases:\n  - name: orders\n    dsn: postgresql://u:hunter2@h/d\n    interval_seconds: -1\n"
    )
    ended = run(command, "--config", config)
    assert (ended.returncode, ended.stdout) == (2, "")
    for fault in ("web.colour", "web.max_request_bytes", "databases[0].interval_seconds"):
        assert fault in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


@of_the_command
def test_missing_configuration(tmp_path: Path) -> None:
    """A missing configuration file is named in the error, and the exit status is 2."""
    ended = run("serve", "--config", tmp_path / "missing.yaml")
    assert ended.returncode == 2
    assert "missing.yaml" in ended.stderr


@of_the_command
def test_missing_secret(config: Path) -> None:
    """If the variable of a DSN is not set, the error names the database and the variable."""
    config.write_text("databases: [{name: orders, dsn_env: NOT_SET_ANYWHERE}]\n")
    ended = run("serve", "--config", config)
    assert ended.returncode == 2
    assert "'orders'" in ended.stderr
    assert "NOT_SET_ANYWHERE" in ended.stderr


@of_the_command
def test_check_config(config: Path) -> None:
    """`check-config` reports that a valid configuration is valid, and exits with status 0."""
    ended = run("check-config", "--config", config)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the configuration is valid\n", "")


@of_the_command
def test_check_config_reads_the_web_configuration(config: Path, tmp_path: Path) -> None:
    """`check-config` also checks the web configuration file."""
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: nowhere.pem}\n")
    ended = run("check-config", "--config", config, "--web-config-file", tmp_path / "web.yml")
    assert ended.returncode == 2
    assert "web.config_file: " in ended.stderr
    assert "line 1: tls_server_config.cert_file: cannot read 'nowhere.pem': No such file" in ended.stderr


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_every_fault_of_every_file(config: Path, tmp_path: Path, command: str) -> None:
    """One error lists the faults of the file, of the files and variables it names, and of the web configuration."""
    (tmp_path / "web.yml").write_text("basic_auth_users: {prometheus: hunter2}\nrate_limit: {burst: -1}\n")
    (tmp_path / "dsn").write_text("postgresql://u:hunter2@hunter2@h/d")
    config.write_text(
        "web: {config_file: web.yml}\n"
        "log: {level: loud}\n"
        "databases:\n"
        "  - {name: a, dsn_file: dsn}\n"
        "  - {name: b, dsn_env: NOT_SET_ANYWHERE, tls: {mode: verify-full, ca_file: nowhere.crt}}\n"
    )
    ended = run(command, "--config", config)
    assert (ended.returncode, ended.stdout) == (2, "")
    for fault in (
        "exporter.yaml: 5 faults",
        "\n  line 1: web.config_file: ",
        "web.yml: 2 faults\n    line 1: basic_auth_users.prometheus: expected a password hashed with bcrypt",
        "\n    line 2: rate_limit.burst: expected an integer from 0 to 1000000\n",
        "\n  line 2: log.level: expected one of",
        "\n  line 4: databases[0].dsn_file: database 'a': ",
        "\n  line 5: databases[1].dsn_env: database 'b': environment variable 'NOT_SET_ANYWHERE' is not set\n",
        "\n  line 5: databases[1].tls.ca_file: database 'b': cannot read ",
    ):
        assert fault in ended.stderr
    assert "hunter2" not in ended.stderr


@of_the_command
def test_a_secret_that_is_missing_at_a_reload(config: Path, tmp_path: Path) -> None:
    """A reload while a DSN's file is missing keeps the old configuration, and the exporter keeps running."""
    (tmp_path / "dsn").write_text("postgresql://nobody@127.0.0.1:1/nothing")
    config.write_text("databases: [{name: orders, dsn_file: dsn}]\n")
    with Sidecar("--config", config) as sidecar:
        assert eventually(lambda: sidecar.value("database_up", database="orders") == 0)
        (tmp_path / "dsn").unlink()
        sidecar.send(signal.SIGHUP)
        said = sidecar.wait_for("not reloaded, the old configuration stays: .*(?:\n .*)*")
        assert "databases[0].dsn_file: database 'orders': cannot read" in said
        assert sidecar.value("database_up", database="orders") == 0
        assert sidecar.value("exporter_config_last_reload_successful") == 0


@of_the_command
def test_the_example_configuration() -> None:
    """config/exporter.yaml is a valid configuration."""
    example = ROOT / "config" / "exporter.yaml"
    assert run("check-config", "--config", example).returncode == 0


@of_the_command
def test_help() -> None:
    """`--help` names the commands, and a command's `--help` names the options."""
    assert "serve" in run("--help").stdout
    assert "--web.listen-address" in run("serve", "--help").stdout
    assert run("--version").stdout.startswith("sqlalchemy-pool-exporter ")
    assert run().returncode == 2


@of_the_command
@pytest.mark.parametrize(
    ("module", "command"), [("pydantic", "check-config"), ("yaml", "serve"), ("aiohttp", "serve")]
)
def test_missing_extra(module: str, command: str) -> None:
    """If a library of the sidecar is missing, the error names the library and the command to install it."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from sqlalchemy_pool_exporter.cli import main; sys.exit(main([{command!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"sqlalchemy-pool-exporter: {module!r} is missing: pip install 'sqlalchemy-pool-exporter[sidecar]'\n",
    )


@of_the_command
def test_json_log(directory: Path, config: Path) -> None:
    """With log.format json each line of the log is one JSON object."""
    config.write_text(config.read_text() + "log: {format: json}\n")
    with Sidecar("--config", config) as sidecar:
        assert sidecar.end() == 0
        lines = [json.loads(line) for line in sidecar.log if line]
    assert [line["msg"].partition(" ")[0] for line in lines] == ["listening", "stopping"]
    assert {line["level"] for line in lines} == {"info"}


# -- databases


def test_databases(server: Server, config: Path, application_name: str) -> None:
    """`database_up` is 1 for a database that answers and 0 for one that refuses; a scrape waits for no probe."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Accepts connections and never answers, so a probe of this server lasts until its timeout.
        config.write_text(
            json.dumps(
                {
                    "databases": [
                        {"name": "up", "dsn": server.dsn(application_name)},
                        {
                            "name": "silent",
                            "dsn_env": "SILENT_DSN",
                            "interval_seconds": 300,
                            "timeout_seconds": 300,
                        },
                        {"name": "down", "dsn": "postgresql://nobody@127.0.0.1:1/nothing"},
                    ]
                }
            )
        )
        dsn = f"postgresql://nobody:hunter2@127.0.0.1:{silent.getsockname()[1]}/nothing?sslmode=disable"
        with Sidecar("--config", config, SILENT_DSN=dsn) as sidecar:

            def answered() -> bool:
                samples = sidecar.samples()
                up, down = (samples.get(key("database_up", database=name)) for name in ("up", "down"))
                return (up, down) == (1, 0) and bool(samples[key("database_max_connections", database="up")])

            assert eventually(answered)
            # The first probe of this database still runs, and the scrape does not wait for its end.
            assert sidecar.value("database_up", database="silent") in (None, 0)
            assert sidecar.end() == 0
            assert "hunter2" not in "".join(sidecar.log)


@of_the_command
def test_findings_of_a_probed_server(
    server: Server, directory: Path, config: Path, application_name: str
) -> None:
    """A sidecar that probes the server holds the pools against its limits; the audit asks it for that."""
    options = {"interval_seconds": 5, "timeout_seconds": 5}
    orders = {"name": "orders", "dsn": server.dsn(application_name), "pools": ["orders", "fine"], **options}
    config.write_text(json.dumps({"segments": {"directory": str(directory)}, "databases": [orders]}))
    url = server.url("postgresql+psycopg", application_name=application_name)
    registry = CollectorRegistry()
    fine, orders_ = create_engine(url, pool_size=2), create_engine(url, pool_size=1000)
    with Sidecar("--config", config) as sidecar:
        with instrument(fine, name="fine", directory=directory, registry=registry):
            assert eventually(lambda: sidecar.value("database_up", database="orders") == 1)
            assert sidecar.value("finding", pool="fine", rule="too_many_connections") is None
            done = run("audit", sidecar.url)
            assert (done.returncode, done.stdout) == (0, "nothing found in 1 pool in 1 process\n")
        with instrument(orders_, name="orders", directory=directory, registry=registry):
            assert sidecar.value("finding", pool="orders", rule="too_many_connections") == 1
            assert eventually(lambda: run("audit", sidecar.url).returncode == 1)
            done = run("audit", "--json", sidecar.url)
            (finding,) = json.loads(done.stdout)["findings"]
            assert ("orders", "too_many_connections") == (finding["pool"], finding["rule"])
            assert "can open 1010 connections in all processes" in finding["text"]
        assert sidecar.end() == 0


def test_both_sides_of_a_held_connection(
    server: Server, directory: Path, config: Path, application_name: str
) -> None:
    """The metric and the board's JSON say what the session of a held connection does in the server."""
    options = {"interval_seconds": 5, "timeout_seconds": 5}
    orders = {"name": "orders", "dsn": server.dsn(application_name), **options}
    config.write_text(json.dumps({"segments": {"directory": str(directory)}, "databases": [orders]}))
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    with (
        instrument(engine, name="orders", directory=directory, registry=CollectorRegistry()),
        Sidecar("--config", config) as sidecar,
        engine.connect() as connection,
    ):
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

        def count(state: str) -> float | None:
            return sidecar.value("held_connections_by_server_state", pool="orders", server_state=state)

        assert eventually(lambda: count("idle_in_transaction") == 1)
        assert 0 == count("unknown")
        status, text = sidecar.get("/api/v1/pools")
        assert 200 == status
        (held,) = json.loads(text)["held"]
        assert (pid, "idle_in_transaction") == (held["server_pid"], held["server"]["state"])
        assert sidecar.end() == 0
    engine.dispose()
