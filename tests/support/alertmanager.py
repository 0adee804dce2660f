# SPDX-License-Identifier: Apache-2.0
"""A real Alertmanager with the configuration that we ship, and receivers that keep what it sends them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.support.paths import ROOT
from tests.support.process_log import ProcessLog, end_process
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = ROOT / "config" / "alertmanager" / "alertmanager.yml"
# What the durations of the configuration are divided by, if not told otherwise: a minute is half a second.
FASTER = 120.0

Labels = dict[str, str]


class Notified(NamedTuple):
    """An alert that a receiver got, as firing or resolved, and the Unix time at which it did."""

    when: float
    receiver: str
    status: str
    labels: Labels


class Seen(NamedTuple):
    """An alert as Alertmanager sees it: ``active``, ``suppressed``, or not looked at yet (``unprocessed``)."""

    labels: Labels
    state: str
    fingerprint: str
    inhibited_by: set[str]


class Receivers:
    """An HTTP server for the webhooks of all receivers; the mutable state is what it was sent."""

    def __init__(self) -> None:
        self.notified: list[Notified] = []
        notified = self.notified

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver = self.path.removeprefix("/")
                now = time.time()
                notified.extend(
                    Notified(now, receiver, one["status"], one["labels"]) for one in sent["alerts"]
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def configuration(receivers: str, *, faster: float = FASTER) -> str:
    """Return the shipped configuration with other addresses of its receivers and with shorter durations."""

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3]]
        return f"{match[1]}{max(1, round(1000 * seconds / faster))}ms"

    text = CONFIG.read_text("utf-8").replace("127.0.0.1:9095", receivers)
    return re.sub(r"((?:group_wait|group_interval): )(\d+)([smh])\b", shorter, text)


class Alertmanager:
    """``prometheus-alertmanager`` on a port of its own, alone, and the receivers of what it sends."""

    def __init__(self, directory: Path, *, faster: float = FASTER) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.receivers = Receivers()
        (directory / "alertmanager.yml").write_text(configuration(self.receivers.address, faster=faster))
        self._process = subprocess.Popen(
            [
                "prometheus-alertmanager",
                f"--config.file={directory / 'alertmanager.yml'}",
                f"--storage.path={directory / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                "--cluster.listen-address=",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stderr is not None
        self._log = ProcessLog(self._process.stderr)
        address = self._log.wait_for(r'msg="Listening on" address=(\S+)')
        if address is None:
            self.end()
            raise RuntimeError(f"alertmanager did not start:\n{self._log}")
        self.address = address

    def post(self, *alerts: Labels) -> None:
        """Let alerts fire, as Prometheus does."""
        self._ask([{"labels": labels} for labels in alerts])

    def alerts(self) -> list[Seen]:
        """Return the alerts that fire."""
        return [
            Seen(
                alert["labels"],
                alert["status"]["state"],
                alert["fingerprint"],
                set(alert["status"]["inhibitedBy"]),
            )
            for alert in self._ask()
        ]

    def pages(self) -> list[Notified]:
        """Return the alerts that have been sent to the pager as firing, each once."""
        sent: list[Notified] = []
        for one in self.receivers.notified:
            is_new = one.labels not in [earlier.labels for earlier in sent]
            if one.receiver == "pager" and one.status == "firing" and is_new:
                sent.append(one)
        return sent

    def end(self) -> None:
        """End the process and the receivers."""
        end_process(self._process)
        self._log.close()
        self.receivers.close()

    def _ask(self, posted: object = None) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}/api/v2/alerts",
            None if posted is None else json.dumps(posted).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310
            return json.loads(response.read() or b"null")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
