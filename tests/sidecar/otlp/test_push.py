# SPDX-License-Identifier: Apache-2.0
"""The sidecar pushes its metrics over OTLP, with the real exporter, to a receiver."""

from __future__ import annotations

import json
import signal
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.conventions import PREFIX
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.sidecar.config import load
from sqlalchemy_pool_exporter.sidecar.otlp.settings import OTLP
from tests.support.logs import messages_of_this_test
from tests.support.otlp_receiver import Receiver, number, points
from tests.support.samples import key
from tests.support.sidecar import Sidecar
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")

pytestmark = [
    pytest.mark.newest,  # the exporter of OpenTelemetry is of the newest in both environments
    pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks"),
]

TOKEN = "kept-to-itself"  # noqa: S105 - the one of these tests


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def configured(tmp_path: Path, receiver: Receiver) -> Callable[..., Path]:
    """Return a function that writes a configuration with these options of ``otlp``."""

    def write(**options: Any) -> Path:
        chosen = {"endpoint": receiver.url, "interval_seconds": 1, "timeout_seconds": 1} | options
        lines = [f"  {name}: {json.dumps(value)}" for name, value in chosen.items()]
        path = tmp_path / "exporter.yaml"
        (tmp_path / "segments").mkdir(exist_ok=True)
        path.write_text("\n".join(["segments: {directory: segments}", "otlp:", *lines, ""]))
        return path

    return write


def test_what_is_pushed(receiver: Receiver, configured: Callable[..., Path], tmp_path: Path) -> None:
    """All processes are pushed as one, by the semantic conventions and by their own names, with a resource."""
    path = configured(service_name="shop-pools")
    environment: dict[str, Any] = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with Worker(tmp_path / "segments") as one, Worker(tmp_path / "segments") as two:
        for times, worker in ((2, one), (5, two)):
            worker.do("pool", "orders")
            worker.do("cycle", "orders", times)
        one.do("hold", "orders", 1)
        with Sidecar("--config", path, **environment) as sidecar:
            assert eventually(lambda: receiver.requests)
            samples = sidecar.samples()
    found = receiver.metrics()
    shown = {
        (name.removeprefix(PREFIX), *at[1:]): number(point)
        for name, metric in found.items()
        if name.startswith(PREFIX) and metric.WhichOneof("data") == "sum"
        for at, point in ((("", *at[1:]), point) for at, point in points(metric).items())
    }
    capacity = samples[key("capacity", pool="orders")]
    assert shown == {
        ("count", "used"): 1,
        ("count", "idle"): shown["count", "idle"],
        ("idle.max",): 4,
        ("idle.min",): 0,
        ("max",): capacity,
        ("pending_requests",): 0,
        ("timeouts",): 0,
    }
    assert found[f"{PREFIX}timeouts"].sum.is_monotonic
    assert not found[f"{PREFIX}count"].sum.is_monotonic
    for name in (f"{PREFIX}wait_time", "sqlalchemy_pool_checkout_wait_seconds"):
        metric = found[name]
        assert metric.unit == "s"
        (point,) = points(metric).values()
        assert (point.count, sum(point.bucket_counts)) == (8, 8)
        assert list(point.explicit_bounds) == list(BUCKETS)
        assert metric.histogram.aggregation_temporality == 2  # cumulative
    checkouts = found["sqlalchemy_pool_checkouts"]
    assert checkouts.sum.is_monotonic
    assert [number(point) for point in points(checkouts).values()] == [8]
    assert found["sqlalchemy_pool_capacity"].WhichOneof("data") == "gauge"
    resource = receiver.resource()
    assert resource["service.name"] == "shop-pools"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.instance.id"]


def test_only_the_conventions(receiver: Receiver, configured: Callable[..., Path], tmp_path: Path) -> None:
    """``own_metrics: false`` leaves only the names of the conventions; the environment names service and endpoint."""
    path = configured(own_metrics=False, endpoint="http://127.0.0.1:9/nowhere")
    environment: dict[str, Any] = {
        "OTEL_SERVICE_NAME": "named",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": receiver.url,
    }
    with Worker(tmp_path / "segments") as worker, Sidecar("--config", path, **environment):
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 1)
        assert eventually(lambda: receiver.requests and receiver.metrics())
    assert [name for name in receiver.metrics() if not name.startswith(PREFIX)] == []
    assert receiver.resource()["service.name"] == "named"


def test_headers(receiver: Receiver, configured: Callable[..., Path], tmp_path: Path) -> None:
    """Headers are read at every push, so a token that is renewed is used; no log line has one."""
    file = tmp_path / "headers"
    file.write_text(f"Authorization=Bearer%20{TOKEN}\nx-scope=pools\n")
    with Sidecar("--config", configured(headers_file="headers")) as sidecar:
        assert eventually(lambda: receiver.requests)
        sent = receiver.requests[-1][0]
        assert (sent["authorization"], sent["x-scope"]) == (f"Bearer {TOKEN}", "pools")
        file.write_text(f"authorization=Bearer {TOKEN}-2")
        assert eventually(lambda: receiver.requests[-1][0]["authorization"] == f"Bearer {TOKEN}-2")
        receiver.status = 401
        sidecar.wait_for("metrics are not pushed")
        assert TOKEN not in "".join(sidecar.log)


def test_a_receiver_that_fails(receiver: Receiver, configured: Callable[..., Path]) -> None:
    """Failures are counted and logged once, scrapes go on, and the next interval tries again."""
    receiver.status = 400
    began = time.time()
    with Sidecar("--config", configured()) as sidecar:
        failures = {"result": "failure"}
        assert eventually(lambda: (sidecar.value("exporter_otlp_pushes_total", **failures) or 0) >= 2)
        receiver.status = 200
        sidecar.wait_for("metrics are pushed to the OTLP endpoint again")
        assert eventually(lambda: sidecar.value("exporter_otlp_pushes_total", result="success"))
        last = sidecar.value("exporter_otlp_last_success_timestamp_seconds")
        assert last is not None
        assert began <= last <= time.time()
        told = [line for line in sidecar.log if "OTLP" in line or "opentelemetry" in line]
    said = ["are not pushed" in line for line in told]
    assert said[:2] == [True, False], told
    # A busy machine may be too late for one of the later pushes.
    assert all(one != other for one, other in pairwise(said)), told


def pushed_once(**options: Any) -> tuple[int, int]:
    """Push once; return how many pushes succeeded and how many failed."""
    from sqlalchemy_pool_exporter.sidecar.otlp.pusher import Pusher  # noqa: PLC0415 - an extra

    # A busy machine may stand still for a second: it then still has one for the last of the answers, which are asked
    # for after none, one and three seconds.
    pusher = Pusher(OTLP(timeout_seconds=5.0, **options), list)
    pusher.start()
    pusher.stop()
    return pusher.status[:2]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (302, "302 Found, a redirect, which is not followed"),
        (308, "308 Permanent Redirect, a redirect, which is not followed"),
        (404, "404 Not Found"),
        (503, "503 Service Unavailable"),
    ],
)
def test_answers_that_are_failures(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, reason: str
) -> None:
    """The log says how the receiver answered, also if the push was repeated. A redirect is no success."""
    receiver.status = status
    assert pushed_once(endpoint=receiver.url) == (0, 1)
    assert messages_of_this_test(caplog.records) == [f"metrics are not pushed to the OTLP endpoint: {reason}"]


def test_no_receiver(caplog: pytest.LogCaptureFixture) -> None:
    """The log says why none can be reached, without the URL, which may have a token."""
    assert pushed_once(endpoint=f"http://127.0.0.1:9/{TOKEN}?key={TOKEN}") == (0, 1)
    assert "Connection refused" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("headers", [f"Authorization: Bearer {TOKEN}", f"authorization=%20{TOKEN}\\"])
def test_headers_of_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, headers: str
) -> None:
    """What the exporter's library says of the headers that OpenTelemetry's variables have is in no log line."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    receiver.status = 401
    assert pushed_once(endpoint=receiver.url) == (0, 1)
    assert TOKEN not in caplog.text


def test_since_when_counts_go(receiver: Receiver, configured: Callable[..., Path], tmp_path: Path) -> None:
    """The first points span no time: what was counted before a sidecar began is not of its time. The next go on."""
    path = configured()
    with Worker(tmp_path / "segments") as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 3)
        with Sidecar("--config", path):

            def pushed() -> list[Any]:
                return [
                    next(iter(points(metric).values()))
                    for request in list(receiver.requests)
                    for resource in request[1].resource_metrics
                    for scope in resource.scope_metrics
                    for metric in scope.metrics
                    if metric.name == "sqlalchemy_pool_checkouts"
                ]

            # The answer to a push may come too late on a busy machine: then the next one is the first.
            assert eventually(lambda: any(one.start_time_unix_nano < one.time_unix_nano for one in pushed()))
    times = [(one.start_time_unix_nano, one.time_unix_nano) for one in pushed()]
    at = next(at for at, (start, time) in enumerate(times) if start < time)
    assert {number(one) for one in pushed()} == {3}
    assert at > 0
    assert times[at][0] == times[at - 1][0] == times[at - 1][1]


def test_a_receiver_that_hangs(receiver: Receiver, configured: Callable[..., Path]) -> None:
    """A receiver that never answers disturbs neither scrapes nor the end."""
    receiver.may_answer.clear()
    with Sidecar("--config", configured()) as sidecar:
        assert eventually(lambda: sidecar.value("exporter_otlp_pushes_total", result="failure"))
        assert sidecar.get()[0] == 200
        assert sidecar.end() == 0


def test_the_last_push(receiver: Receiver, configured: Callable[..., Path], tmp_path: Path) -> None:
    """What happened since the last push is pushed when the sidecar is stopped."""
    with (
        Worker(tmp_path / "segments") as worker,
        Sidecar("--config", configured(interval_seconds=3600, timeout_seconds=30)) as sidecar,
    ):
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 3)
        assert receiver.requests == []
        assert sidecar.end() == 0
    (point,) = points(receiver.metrics()["sqlalchemy_pool_checkouts"]).values()
    assert number(point) == 3


def test_reload(receiver: Receiver, configured: Callable[..., Path]) -> None:
    """A reload begins and ends pushing, and the count goes on."""
    path = configured()
    with Sidecar("--config", path) as sidecar:
        assert eventually(lambda: receiver.requests)
        configured(service_name="renamed")
        sidecar.send(signal.SIGHUP)
        assert eventually(lambda: receiver.resource()["service.name"] == "renamed")
        # The receiver has a push before the sidecar knows that it succeeded.
        assert eventually(lambda: (sidecar.value("exporter_otlp_pushes_total", result="success") or 0) >= 2)
        path.write_text("segments: {directory: segments}")
        sidecar.send(signal.SIGHUP)
        assert eventually(lambda: sidecar.value("exporter_otlp_pushes_total", result="success") is None)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"endpoint": "collector:4318"}, "otlp.endpoint: expected an http or https URL"),
        ({"endpoint": f"http://user:{TOKEN}@collector/v1/metrics"}, "otlp.endpoint: has credentials"),
        ({"timeout_seconds": 2}, "otlp.timeout_seconds: is above interval_seconds"),
        ({"headers_env": "SOME", "headers_file": "x"}, "otlp.headers_file: give one of"),
        ({"headers_env": "NOT_THERE"}, "otlp.headers_env: environment variable 'NOT_THERE' is not set"),
        ({"headers_file": "headers"}, "otlp.headers_file: headers must be name=value"),
    ],
)
def test_faults(configured: Callable[..., Path], tmp_path: Path, options: dict[str, Any], fault: str) -> None:
    """What is wrong with the section is said when it is read, without the secrets in it."""
    (tmp_path / "headers").write_text(TOKEN)
    with pytest.raises(ConfigError, match=fault.replace("[", r"\[")) as raised:
        load(configured(**options))
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}==",
        f"authorization=%20{TOKEN}",
        f"authorization=%0A{TOKEN}",
        f"authorization=\u20ac{TOKEN}",
    ],
)
def test_headers_that_http_has_not(configured: Callable[..., Path], tmp_path: Path, text: str) -> None:
    """What cannot be sent is refused when it is read: the exporter's library would quote it."""
    (tmp_path / "headers").write_text(text)
    with pytest.raises(ConfigError, match=r"otlp.headers_file: headers must be name=value") as raised:
        load(configured(headers_file="headers"))
    assert TOKEN not in str(raised.value)


def test_without_the_extra(configured: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without the exporter's package is a fault that names the extra."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.sidecar.otlp.settings.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"otlp.endpoint: .*sqlalchemy-pool-exporter\[otlp\]"):
        load(configured())
