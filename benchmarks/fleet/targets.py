# SPDX-License-Identifier: Apache-2.0
"""The targets of the fleet: one process that answers the scrapes of all of them, each under a path of its own."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from typing import TYPE_CHECKING, Self

from .exposition import Exposition

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from .exposition import Shape

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLUSTERS, NAMESPACES, JOBS = 2, 5, 10
ONE_IN = 50  # of which one is in trouble: all its alerts fire


class Targets:
    """A process that serves ``/N/metrics`` for each target N. The first target also probes a database."""

    def __init__(self, shape: Shape, with_database: Shape) -> None:
        ours, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(
            target=_serve, args=(theirs, shape, with_database), daemon=True
        )
        self._process.start()
        self.port: int = ours.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.join()

    def write(self, path: Path, number: int) -> None:
        """Write the file from which Prometheus learns of the targets, spread over clusters, namespaces and jobs."""
        path.write_text(
            json.dumps(
                [
                    {
                        "targets": [f"127.0.0.1:{self.port}"],
                        "labels": {
                            "__metrics_path__": f"/{at}/metrics",
                            "instance": f"shop-{at:04d}",
                            "cluster": f"c{at % CLUSTERS}",
                            "namespace": f"n{at % NAMESPACES}",
                            "job": f"shop-{at % JOBS}",
                        },
                    }
                    for at in range(number)
                ]
            )
        )


def _serve(pipe: Connection, shape: Shape, with_database: Shape) -> None:
    """Answer scrapes until the process is killed; the port goes through the pipe."""
    every, first = Exposition(shape), Exposition(with_database)
    began = time.time()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch(r"/(\d+)/metrics", self.path)
            if found is None:
                self.send_error(404)
                return
            at = int(found[1])
            body = (every if at else first).text(
                time.time() - began, 1.0 + at % 7, is_in_trouble=at % ONE_IN == 0
            )
            self.send_response(200)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(body)))
            with suppress(ConnectionError):  # a scrape that took too long; Prometheus counts it
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of a thousand scrapes."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()
