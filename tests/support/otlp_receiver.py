# SPDX-License-Identifier: Apache-2.0
"""A receiver of OTLP over HTTP, which keeps what it gets and answers as it is told."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Receiver:
    """Mutable state: the requests so far with their headers, the status of answers, and how long an answer waits."""

    def __init__(self) -> None:
        # Here, because a push may not wait for it. From an extra.
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (  # noqa: PLC0415
            ExportMetricsServiceRequest,
        )

        self.requests: list[tuple[dict[str, str], Any]] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # the sidecar was killed while it sent this
                receiver.may_answer.wait()
                if receiver.status == 200:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.requests.append((headers, ExportMetricsServiceRequest.FromString(body)))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - of the base class
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the last request by their names."""
        (resource,) = self.requests[-1][1].resource_metrics
        return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def resource(self) -> dict[str, str]:
        """Return the attributes of the resource of the last request."""
        (resource,) = self.requests[-1][1].resource_metrics
        return {one.key: one.value.string_value for one in resource.resource.attributes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def points(metric: Any) -> dict[tuple[str, ...], Any]:
    """Return the points of a metric by the values of their attributes, in the order of their names."""
    data = getattr(metric, metric.WhichOneof("data"))
    return {
        tuple(one.value.string_value for one in sorted(point.attributes, key=lambda one: str(one.key))): point
        for point in data.data_points
    }


def number(point: Any) -> float:
    """Return the value of a point."""
    return float(getattr(point, point.WhichOneof("value")))
