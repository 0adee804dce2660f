# SPDX-License-Identifier: Apache-2.0
"""Attack the sidecar's web server and count the scrapes that are still answered.

Each attack starts the installed version's real command line with a directory of many pools. Clients in another process
attack it while three scrapers request the metrics every second: one keeps its connection, one opens a new connection
for each scrape, and one does the same from 50 ms away (it waits that long between connecting and requesting).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_SECONDS = 5.0
DISTANCE_SECONDS = 0.05
DRIP_SECONDS = 0.5
DESCRIPTORS = 4096
MEMORY_MIB = 256  # the chart's limit
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: sidecar\r\n\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the start of a TLS record of 512 bytes
HEAD = b"GET /metrics HTTP/1.1\r\nX-Slow: "

WORKER = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy_pool_exporter import instrument
for number in range(int(sys.argv[1])):
    engine = create_engine("sqlite://", poolclass=QueuePool)
    instrument(engine, name=f"pool-{number}")
    engine.connect().close()
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """Clients that open a new connection whenever the sidecar closes theirs."""

    title: str
    clients: int
    tls: bool = False
    sends: bytes = b""  # after connecting
    drips: bool = False  # sends one byte more every DRIP_SECONDS
    handshake: bool = False


ATTACKS = {
    "none": Attack("no attack", 0),
    "idle": Attack("idle clients", 1500),
    "slow-head": Attack("clients that send a head slowly", 1500, sends=HEAD, drips=True),
    "unread": Attack("clients that do not read the answers", 300, sends=REQUEST * 50),
    "tls-silent": Attack("silent TLS clients", 300, tls=True),
    "tls-hello": Attack("TLS clients that stop in their hello", 300, tls=True, sends=HELLO),
    "tls-idle": Attack("TLS clients, idle after the handshake", 300, tls=True, handshake=True),
    "tls-unread": Attack(
        "TLS clients that do not read the answers", 300, tls=True, sends=REQUEST * 50, handshake=True
    ),
}


@dataclass(slots=True)
class Scraper:
    """A scraper and its results."""

    keep_alive: bool = False
    distance: float = 0.0
    tried: int = 0
    seconds: list[float] = field(default_factory=list)

    async def run(self, port: int, tls: ssl.SSLContext | None, until: float) -> None:
        """Scrape every second until ``until``; a scrape that fails or times out counts only as tried."""
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (began := time.monotonic()) < until:
            self.tried += 1
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    if connection is None or connection[0].at_eof():
                        connection = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
                        await asyncio.sleep(self.distance)
                    await _scrape(*connection)
                self.seconds.append(time.monotonic() - began)
            except (OSError, EOFError, TimeoutError):
                self._abort(connection)
                connection = None
            if not self.keep_alive:
                self._abort(connection)
                connection = None
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
        self._abort(connection)

    @staticmethod
    def _abort(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
        if connection is not None:
            connection[1].transport.abort()

    def __str__(self) -> str:
        slowest = f"{max(self.seconds):.2f} s" if self.seconds else "-"
        return f"{len(self.seconds)} of {self.tried}, {slowest}"


async def _scrape(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise EOFError
    await reader.readexactly(int(length[1]))


def main() -> int:
    """Run the attacks and print a table."""
    options = _options()
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    if options.as_attacker:
        _attack(ATTACKS[options.as_attacker], options.port)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as directory, _pools(Path(directory), options.pools):
        for name in options.only or ATTACKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(_measured(name, Path(directory), options.seconds))
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    table = Table(
        title="Scrapes answered under attack",
        note="",
        columns=(
            *("attack", "clients", "kept alive", "new connection", "50 ms away"),
            *("peak MiB", "descriptors", "log lines", "processor s"),
        ),
        rows=tuple(rows),
    )
    print(table.terminal())
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=ATTACKS, help="run this attack (repeatable)")
    parser.add_argument("--seconds", type=float, default=12.0, help="duration of each attack (default: 12)")
    parser.add_argument("--pools", type=int, default=250, help="pools in the exposition (default: 250)")
    parser.add_argument("--as-attacker", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(name: str, directory: Path, seconds: float) -> tuple[str, ...]:
    attack = ATTACKS[name]
    with ExitStack() as stack:
        sidecar, port, log = stack.enter_context(_sidecar(directory, tls=attack.tls))
        attackers = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attack", "--as-attacker", name, "--port", str(port)]
        )
        stack.callback(attackers.wait)
        stack.callback(attackers.kill)
        time.sleep(1.0)  # until all clients attack
        before = _processor_seconds(sidecar.pid)
        scrapers = (Scraper(keep_alive=True), Scraper(), Scraper(distance=DISTANCE_SECONDS))
        descriptors = asyncio.run(_watched(sidecar.pid, port, seconds, scrapers, tls=attack.tls))
        memory = _peak_mib(sidecar.pid)
        processor = _processor_seconds(sidecar.pid) - before
        return (
            attack.title,
            str(attack.clients),
            *map(str, scrapers),
            f"{memory:.0f}" + (" (over the limit)" if memory > MEMORY_MIB else ""),
            str(descriptors),
            str(len(log.read_text("utf-8").splitlines())),
            f"{processor:.1f}",
        )


async def _watched(pid: int, port: int, seconds: float, scrapers: tuple[Scraper, ...], *, tls: bool) -> int:
    """Run the scrapers and return the largest number of descriptors that the sidecar had open."""
    until = time.monotonic() + seconds
    scraping = [asyncio.create_task(one.run(port, _client() if tls else None, until)) for one in scrapers]
    most = 0
    while not all(one.done() for one in scraping):
        most = max(most, _descriptors(pid))
        await asyncio.sleep(0.1)
    await asyncio.gather(*scraping)
    return most


@contextmanager
def _pools(directory: Path, number: int) -> Iterator[None]:
    environment = {**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(number)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        if worker.stdout is None or worker.stdout.readline() != "ready\n":
            raise SystemExit("the worker with the pools did not start")
        yield
        worker.communicate()


@contextmanager
def _sidecar(directory: Path, *, tls: bool) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "log"
        arguments = ["--web-config-file", str(_web_config(Path(made)))] if tls else []
        command = [
            sys.executable,
            "-m",
            "sqlalchemy_pool_exporter",
            "serve",
            "--listen-address",
            "127.0.0.1:0",
        ]
        with log.open("wb") as output:
            sidecar = subprocess.Popen([*command, "--directory", str(directory), *arguments], stderr=output)
        try:
            while (found := re.search(r"listening on \S+:(\d+)", log.read_text("utf-8"))) is None:
                if sidecar.poll() is not None:
                    raise SystemExit(log.read_text("utf-8"))
                time.sleep(0.05)
            yield sidecar, int(found[1]), log
        finally:
            sidecar.kill()
            sidecar.wait()


def _web_config(directory: Path) -> Path:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*command, "-subj", "/CN=localhost", *files], check=True, capture_output=True)
    path = directory / "web.yaml"
    path.write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n", "utf-8")
    return path


def _client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    return int(found[1]) / 1024 if found else 0.0


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _attack(attack: Attack, port: int) -> None:
    if attack.handshake:
        for _ in range(attack.clients):
            threading.Thread(target=_stall_after_handshake, args=(attack.sends, port)).start()
        return
    poll = select.epoll()
    clients: dict[int, socket.socket] = {}
    for _ in range(attack.clients):
        _connect(attack, port, poll, clients)
    drip_at = time.monotonic() + DRIP_SECONDS
    while clients:
        for descriptor, _ in poll.poll(max(0.0, drip_at - time.monotonic())):  # closed by the sidecar
            clients.pop(descriptor).close()
            _connect(attack, port, poll, clients)
        if attack.drips and time.monotonic() >= drip_at:
            for client in clients.values():
                with suppress(OSError):
                    client.send(b"x")
        if time.monotonic() >= drip_at:
            drip_at = time.monotonic() + DRIP_SECONDS


def _connect(attack: Attack, port: int, poll: select.epoll, clients: dict[int, socket.socket]) -> None:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)  # noqa: FBT003 - as the standard library has it
    client.connect_ex(("127.0.0.1", port))
    if attack.sends:
        # Over loopback the TCP handshake is already complete, unless the listen queue is full.
        with suppress(OSError):
            client.send(attack.sends)
    clients[client.fileno()] = client
    poll.register(client, select.EPOLLRDHUP)


def _stall_after_handshake(sends: bytes, port: int) -> None:
    context = _client()
    while True:
        with suppress(OSError), socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.settimeout(TIMEOUT_SECONDS)
            plain.connect(("127.0.0.1", port))
            with context.wrap_socket(plain) as client:
                client.sendall(sends)
                closed = select.poll()
                closed.register(client, select.POLLRDHUP)
                closed.poll()


if __name__ == "__main__":
    sys.exit(main())
