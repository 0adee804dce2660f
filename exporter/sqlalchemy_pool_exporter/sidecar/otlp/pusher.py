# SPDX-License-Identifier: Apache-2.0
"""The thread that pushes metrics over OTLP.

It is a daemon thread of its own: neither the web server nor the end of the process ever waits for a receiver. A push
that fails is not kept: counts are cumulative, so the next one says all.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource

from .conversion import Times, converted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from sqlalchemy_pool_exporter.sidecar.secret import Secret

    from .settings import OTLP

_logger = logging.getLogger("sqlalchemy_pool_exporter")
_MOST_SAID = 200  # characters of a reason
_REDIRECT: Final = 3  # first digit of the status
# The exporter's library sends the headers of these, too.
_HEADER_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_CREDENTIAL_VARIABLES: Final = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
)


class Status(NamedTuple):
    """What was pushed so far."""

    succeeded: int = 0
    failed: int = 0
    last_success: float = 0.0  # Unix time


class Pusher:
    """Pushes the metrics of a sidecar at each interval, and once more when it is stopped.

    Mutable state: the status, the exporter with the headers that it sends, the end of its last request, when the first
    push succeeded, and whether the last one failed.

    Args:
        settings: of the configuration, with an endpoint.
        collect: returns the families, in this thread.
        before: of an earlier pusher of this process, whose counts go on.
    """

    def __init__(
        self, settings: OTLP, collect: Callable[[], Iterable[Metric]], before: Status | None = None
    ) -> None:
        self.settings = settings
        self.status = before or Status()
        self._collect = collect
        self._exporter: tuple[dict[str, Secret], Any] | None = None
        self._requests = _Requests()
        self._has_failed = False
        self._began = 0
        self._resource = _resource(settings.service_name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqlalchemy-pool-exporter-otlp", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Push once more and end; wait for that no longer than for a push."""
        self._stop.set()
        self._thread.join(self.settings.timeout_seconds)
        if self._thread.is_alive():
            _logger.warning(
                "the last push to the OTLP endpoint was given up after %g s", self.settings.timeout_seconds
            )
        elif self._exporter is not None:
            self._exporter[1].shutdown()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stop.wait(self.settings.interval_seconds)
            self._push()

    def _push(self) -> None:
        said = _Said()
        self._requests.end = ""
        try:
            with said:
                is_done = self._export()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next push is due
            is_done, said.reason = False, f"{type(error).__name__}: {error}"
        # Of a request that it has repeated, the library says only that time is up; older ones quote the URL.
        reason = self._requests.end or said.reason
        status = self.status
        if is_done:
            self.status = status._replace(succeeded=status.succeeded + 1, last_success=time.time())
        else:
            self.status = status._replace(failed=status.failed + 1)
        # Once for each change, so that a receiver that is down for a day leaves two lines.
        if is_done == self._has_failed:
            self._has_failed = not is_done
            if is_done:
                _logger.info("metrics are pushed to the OTLP endpoint again")
            else:
                _logger.warning("metrics are not pushed to the OTLP endpoint: %s", self._hidden(reason))

    def _export(self) -> bool:
        exporter = self._exporter_now()
        now = time.time_ns()
        # The processes have counted before, and this one may have pushed that before it was started again. So the first
        # points span no time, which means "counted since an unknown time": a receiver adds only what comes after them.
        times = Times(self._began or now, now)
        data = converted(self._collect(), self._resource, times, own_metrics=self.settings.own_metrics)
        is_done = bool(exporter.export(data) is MetricExportResult.SUCCESS)
        if is_done:
            self._began = times.began
        return is_done

    def _exporter_now(self) -> Any:
        """Return an exporter with the headers of now: a token may have been renewed."""
        headers = self.settings.headers()
        if self._exporter is None or self._exporter[0] != headers:
            revealed = {name: secret.reveal() for name, secret in headers.items()}
            exporter = OTLPMetricExporter(
                endpoint=self.settings.endpoint,
                headers=revealed or None,
                # The older ones take whole seconds.
                timeout=max(1, round(self.settings.timeout_seconds)),
                # The library makes one with credentials only if it gets none.
                session=None if any(map(os.environ.get, _CREDENTIAL_VARIABLES)) else self._requests,
            )
            self._exporter = headers, exporter
        return self._exporter[1]

    def _hidden(self, reason: str) -> str:
        """Return a reason without secrets: a library may quote URL and headers, or a receiver."""
        for secret in (self.settings.endpoint, *self._values_of_headers()):
            if secret:
                reason = reason.replace(secret, "***")
        return reason[:_MOST_SAID]

    def _values_of_headers(self) -> Iterator[str]:
        for secret in () if self._exporter is None else self._exporter[0].values():
            yield secret.reveal()
        for name in _HEADER_VARIABLES:
            for header in os.environ.get(name, "").split(","):
                value = header.partition("=")[2].strip()
                yield from (value, unquote(value))


class _Requests(requests.Session):
    """Follows no redirect, since that would turn a push into a GET. Mutable state: how the last request ended."""

    end = ""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request; raise if the answer is a redirect, which the exporter's library takes for a success."""
        try:
            response = super().send(request, **{**options, "allow_redirects": False})
        except Exception as error:
            self.end = _cause(error)
            raise
        self.end = f"{response.status_code} {response.reason}"
        if response.status_code // 100 == _REDIRECT:
            self.end += ", a redirect, which is not followed"
            raise requests.TooManyRedirects(self.end)
        return response


def _cause(error: Exception) -> str:
    """Return why a request failed, without its URL: requests wraps what urllib3 wraps."""
    cause: Any = error
    for _ in range(2):
        inner = getattr(cause, "reason", None) or next(iter(getattr(cause, "args", ())), None)
        if isinstance(inner, Exception):
            cause = inner
    return f"{type(cause).__name__}: {cause}"


class _Said(logging.Handler):
    """Keeps what the exporter's library logs of a push, in place of its log: it says so at each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = "no reason is known"
        # Of all of OpenTelemetry: what reads the variables quotes headers that it does not understand.
        self._logger = logging.getLogger("opentelemetry")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the last reason."""
        self.reason = record.getMessage()

    def __enter__(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def __exit__(self, *exc_info: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True


def _resource(service_name: str) -> Resource:
    """Return what pushes. What ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say comes before."""
    said = Resource.create()
    ours = {"service.name": service_name, "service.instance.id": socket.gethostname()}
    known = {
        name: value
        for name, value in said.attributes.items()
        if not (name == "service.name" and str(value).startswith("unknown_service"))
    }
    return Resource({**ours, **known}, said.schema_url)
