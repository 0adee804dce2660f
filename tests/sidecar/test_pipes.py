# SPDX-License-Identifier: Apache-2.0
"""A pipe that nobody writes to, in place of any file that the exporter reads, keeps it neither waiting nor alive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.sidecar import Sidecar, run
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest  # the files are opened by this package alone

# Nobody listens there, so each probe connects, and reads its files, anew.
DSN = "postgresql://probe:secret@127.0.0.1:1/postgres"
PROBE = "name: orders, interval_seconds: 1, timeout_seconds: 1"
TLS = "mode: verify-full, ca_file: {directory}/ca"
# The file that is a pipe, and the configuration that names it.
CONFIGURATIONS = {
    "exporter.yaml": "",
    "web": "web: {{config_file: {directory}/web}}",
    "web-cert": "web: {{config_file: {directory}/web-tls}}",
    "dsn": "databases: [{{" + PROBE + ", dsn_file: {directory}/dsn}}]",
    "ca": "databases: [{{" + PROBE + f", dsn: '{DSN}', tls: {{{{{TLS}}}}}}}}}]",
    "cert": "databases: [{{"
    + PROBE
    + f", dsn: '{DSN}', tls: {{{{mode: require, cert_file: {{directory}}/cert, key_file: {{directory}}/key}}}}}}}}]",
    "root": "databases: [{{"
    + PROBE
    + f", dsn: '{DSN}?sslmode=verify-full&sslrootcert={{directory}}/root'}}}}]",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the path of the configuration, beside a web configuration that names a certificate."""
    (tmp_path / "web-tls").write_text("tls_server_config: {cert_file: web-cert, key_file: web-key}\n")
    return tmp_path / "exporter.yaml"


def write(config: Path, name: str) -> None:
    """Write the configuration that names a file, and make a pipe of that file."""
    config.write_text(CONFIGURATIONS[name].format(directory=config.parent))
    make_pipe(config.parent / name)


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *((name, "serve") for name in CONFIGURATIONS),
        # It reads with the same functions: once its own file, and once one that a library opens.
        ("exporter.yaml", "check-config"),
        ("root", "check-config"),
        *(
            pytest.param(name, "check-config", marks=pytest.mark.soak)
            for name in CONFIGURATIONS
            if name not in {"exporter.yaml", "root"}
        ),
    ],
)
def test_at_the_start(config: Path, name: str, command: str) -> None:
    """The command ends with status 2 and says which file it is."""
    write(config, name)
    done = run(command, "--config", config)
    assert done.returncode == 2
    assert re.search(r"cannot read.*(not a regular file|nobody writes to)", done.stderr), done.stderr


def test_sigterm_after_reloads(config: Path) -> None:
    """Each reload fails, the exporter serves on, and SIGTERM ends it with status 0: no reload waits for a pipe."""
    config.write_text("databases: []\n")
    with Sidecar("--config", config) as sidecar:
        for number, name in enumerate(CONFIGURATIONS, 1):
            config.unlink()  # it may be a pipe
            write(config, name)
            sidecar.send(signal.SIGHUP)
            sidecar.wait_for(rf"(?s)(not reloaded, the old configuration stays.*){{{number}}}")
            assert sidecar.get("/-/healthy")[0] == 200
        assert sidecar.end() == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sigterm_during_a_reload(config: Path, name: str) -> None:
    """SIGTERM just after SIGHUP ends the exporter with status 0, whether or not the reload has failed by then."""
    config.write_text("databases: []\n")
    with Sidecar("--config", config) as sidecar:
        write(config, name)
        sidecar.send(signal.SIGHUP)
        assert sidecar.end() == 0


def test_sigterm_at_the_start(config: Path) -> None:
    """SIGTERM ends the command while it waits for the content of a pipe that is open for writing."""
    make_pipe(config)
    command = [sys.executable, "-m", "sqlalchemy_pool_exporter", "serve", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        writer = os.open(config, os.O_RDWR)
        try:
            process.terminate()
            assert process.wait(SECONDS) in {-signal.SIGTERM, 0, 2}
        finally:
            os.close(writer)


@pytest.mark.parametrize("name", ["dsn", "ca"])
def test_sigterm_while_a_probe_wants_the_file(config: Path, name: str) -> None:
    """A file that becomes a pipe while the exporter runs fails the probes, and SIGTERM ends the exporter."""
    content = DSN if name == "dsn" else ""
    (config.parent / name).write_text(content)
    config.write_text(CONFIGURATIONS["dsn"].format(directory=config.parent))
    (config.parent / "dsn").write_text(DSN)
    with Sidecar("--config", config) as sidecar:
        sidecar.wait_for("'orders': connect")
        make_pipe(config.parent / "ca")
        make_pipe(config.parent / "dsn")
        if name == "ca":
            (config.parent / "dsn").unlink()
            (config.parent / "dsn").write_text(f"{DSN}?sslmode=verify-full&sslrootcert={config.parent}/ca")
        sidecar.wait_for(
            "'orders': configuration: .*not a regular file|'orders': configuration: .*cannot read"
        )
        assert sidecar.end() == 0


def test_a_pipe_with_a_writer_is_read(config: Path) -> None:
    """The configuration may come from a pipe, as with a shell's process substitution."""
    reading, writing = os.pipe()
    os.write(writing, b"databases: nonsense\n")
    os.close(writing)
    command = [sys.executable, "-m", "sqlalchemy_pool_exporter", "check-config"]
    done = subprocess.run(
        [*command, "--config", f"/dev/fd/{reading}"],
        pass_fds=[reading],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    os.close(reading)
    assert (2, True) == (done.returncode, "databases: expected a list" in done.stderr)
    assert config.parent.exists()
