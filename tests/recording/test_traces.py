# SPDX-License-Identifier: Apache-2.0
"""Slow checkouts in traces: an event of the current span, and exemplars of waits and holds, with the real SDK."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool

from sqlalchemy_pool_exporter import TargetError, environment, exposition, instrument
from tests.support.fakes import FakeConnection
from tests.support.paths import ROOT
from tests.support.programs import PROLOGUE, run
from tests.support.prometheus import Prometheus, scraping
from tests.support.samples import RegistrySamples
from tests.support.sidecar import OPENMETRICS, Sidecar
from tests.support.wait import eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from opentelemetry import trace
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Exemplar

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

WAIT, HOLD = "sqlalchemy_pool_checkout_wait_seconds", "sqlalchemy_pool_hold_seconds"
SLOW = 0.05  # seconds that a checkout waits here; trace_after is less
OPTIONS: dict[str, Any] = {"name": "orders", "trace_after": 0.03}
SQLITE: dict[str, Any] = {
    "poolclass": QueuePool,
    "pool_size": 1,
    "max_overflow": 0,
    "connect_args": {"check_same_thread": False},
}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Iterator[trace.Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider.get_tracer(__name__)
    provider.shutdown()


def a_pool(**options: Any) -> Any:
    return QueuePool(FakeConnection, **{"pool_size": 1, "max_overflow": 0} | options)  # type: ignore[arg-type]


@contextmanager
def full(pool: QueuePool, seconds: float = SLOW) -> Iterator[None]:
    """Hold the pool's only connection until another checkout has waited for so long."""
    held, waits = pool.connect(), threading.Event()
    queue: Any = pool._pool

    def release() -> None:
        assert eventually(lambda: queue.not_empty._waiters)
        waits.set()
        time.sleep(seconds)
        held.close()

    thread = threading.Thread(target=release)
    thread.start()
    yield
    thread.join()
    assert waits.is_set()


def event_of(spans: InMemorySpanExporter) -> dict[str, Any]:
    """Return the attributes of the only event of the only span, without their prefix."""
    (span,) = spans.get_finished_spans()
    (event,) = span.events
    assert event.name == "sqlalchemy_pool.wait"
    return {name.removeprefix("sqlalchemy_pool."): value for name, value in (event.attributes or {}).items()}


def exemplars(families: Iterable[Metric]) -> dict[str, list[Exemplar]]:
    """Return the exemplars of each histogram; each is in the bucket of its value."""
    found: dict[str, list[Exemplar]] = {}
    for family in families:
        bound = 0.0
        for sample in family.samples:
            if sample.exemplar is not None:
                assert sample.name == f"{family.name}_bucket"
                bound = float(sample.labels["le"])
                assert sample.exemplar.value <= bound
                found.setdefault(family.name, []).append(sample.exemplar)
    return found


def of_registry(registry: CollectorRegistry) -> dict[str, list[Exemplar]]:
    """Return the exemplars of a registry, through OpenMetrics and its parser."""
    text = exposition.openmetrics(registry.collect()).decode()
    return exemplars(text_string_to_metric_families(text))


def ids(span: trace.Span) -> dict[str, str]:
    context = span.get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


# -- events


def test_a_slow_checkout(
    tracer: trace.Tracer, spans: InMemorySpanExporter, registry: CollectorRegistry
) -> None:
    """The current span gets an event: how long the checkout waited, for what, of which pool, and from where."""
    pool = a_pool()
    with instrument(pool, registry=registry, **OPTIONS), full(pool), tracer.start_as_current_span("request"):
        began = time.monotonic()
        pool.connect().close()
        took = time.monotonic() - began
    event = event_of(spans)
    wait = event.pop("wait.seconds")
    assert SLOW * 0.9 <= wait <= took
    assert event.pop("wait.queue_seconds") == pytest.approx(wait)
    site = f"{__name__}:test_a_slow_checkout:{event.pop('code.line.number')}"
    assert event == {
        "db.client.connection.pool.name": "orders",
        "site": site,
        "code.function.name": f"{__name__}.test_a_slow_checkout",
    }


def test_a_quick_checkout(
    tracer: trace.Tracer, spans: InMemorySpanExporter, registry: CollectorRegistry
) -> None:
    """A checkout that does not wait for so long leaves the span alone, and there is no exemplar."""
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, trace_after=20.0):
        with full(pool), tracer.start_as_current_span("request"):
            pool.connect().close()
        assert of_registry(registry) == {}
    (span,) = spans.get_finished_spans()
    assert span.events == ()


def test_phases(tracer: trace.Tracer, spans: InMemorySpanExporter, registry: CollectorRegistry) -> None:
    """The event says how long the queue, the ping and the attempt to connect took, and all else."""

    def connect(*_: object) -> FakeConnection:
        connecting.append(time.monotonic())
        time.sleep(SLOW)
        return FakeConnection()

    def phases_of_event() -> dict[str, float]:
        event = event_of(spans)
        spans.clear()
        phases = {
            name.removeprefix("wait.").removesuffix("_seconds"): event[name]
            for name in event
            if "_sec" in name
        }
        assert sum(phases.values()) == pytest.approx(event["wait.seconds"], abs=0.001)
        return phases

    connecting: list[float] = []
    pool = a_pool(pool_size=2)
    pool._creator = connect
    with instrument(pool, registry=registry, **OPTIONS):
        with tracer.start_as_current_span("request"):
            began = time.monotonic()
            held = pool.connect()
        phases = phases_of_event()
        assert phases.keys() - {"other"} == {"queue", "connect"}
        assert phases["connect"] >= SLOW * 0.9
        assert phases["queue"] <= connecting[0] - began
        held.close()
    engine = create_engine("sqlite://", **SQLITE, pool_pre_ping=True)
    ping = engine.dialect.do_ping

    def slow_ping(connection: Any) -> bool:
        time.sleep(SLOW)
        return ping(connection)

    dialect: Any = engine.dialect
    dialect.do_ping = slow_ping
    engine.connect().close()
    with instrument(engine, registry=registry, **OPTIONS):
        with full(engine.pool), tracer.start_as_current_span("request"):  # type: ignore[arg-type]
            engine.connect().close()
        phases = phases_of_event()
        assert phases.keys() - {"other"} == {"queue", "ping"}
        assert min(phases["queue"], phases["ping"]) >= SLOW * 0.9
    engine.dispose()


@pytest.mark.parametrize("failure", [PoolTimeout, ZeroDivisionError])
def test_a_checkout_that_fails(
    tracer: trace.Tracer,
    spans: InMemorySpanExporter,
    registry: CollectorRegistry,
    failure: type[Exception],
) -> None:
    """A checkout that fails after a long wait adds an event, too, with the class of the error, and an exemplar."""

    def fail(*_: object) -> None:
        time.sleep(SLOW)
        raise ZeroDivisionError("no")

    pool = a_pool(timeout=SLOW)
    with instrument(pool, registry=registry, **OPTIONS):
        held = pool.connect()
        if failure is ZeroDivisionError:
            held.invalidate()
            pool._creator = fail
        with tracer.start_as_current_span("request") as span, pytest.raises(failure):
            pool.connect()
        assert [one.labels for one in of_registry(registry)[WAIT]] == [ids(span)]
        held.close()
    (found,) = spans.get_finished_spans()
    kinds = [event.attributes["error.type"] for event in found.events[:1] if event.attributes]
    assert kinds == [failure.__qualname__ if failure is ZeroDivisionError else "sqlalchemy.exc.TimeoutError"]


def test_an_asyncio_engine(
    tracer: trace.Tracer, spans: InMemorySpanExporter, registry: CollectorRegistry
) -> None:
    """The span of the task is found from the greenlet in which SQLAlchemy checks out."""

    async def request(engine: Any, name: str) -> None:
        with tracer.start_as_current_span(name):
            async with engine.connect():
                if name == "first":
                    is_out.set()
                    assert await eventually_async(lambda: engine.pool._pool._queue._getters)
                    await asyncio.sleep(SLOW)

    async def main() -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://", pool_size=1, max_overflow=0, poolclass=AsyncAdaptedQueuePool
        )
        first = asyncio.create_task(request(engine, "first"))
        await is_out.wait()
        # Only now: how long the checkout of the first one took on a busy machine says nothing.
        with instrument(engine, registry=registry, **OPTIONS):
            await request(engine, "second")
            await first
            found.update(of_registry(registry))
        await engine.dispose()

    is_out = asyncio.Event()

    found: dict[str, list[Exemplar]] = {}
    asyncio.run(main())
    first, second = sorted(spans.get_finished_spans(), key=lambda span: span.name)
    assert (first.name, second.name) == ("first", "second")
    assert first.events == ()
    (event,) = second.events
    assert event.attributes is not None
    assert event.attributes["code.function.name"] == (f"{__name__}.test_an_asyncio_engine.<locals>.request")
    assert second.context is not None
    assert [one.labels["span_id"] for one in found[WAIT]] == [f"{second.context.span_id:016x}"]


# -- exemplars


def test_exemplars(tracer: trace.Tracer, registry: CollectorRegistry) -> None:
    """The buckets of the wait and of the hold have the trace and the span, the value, and when it was."""
    pool = a_pool()
    with instrument(pool, registry=registry, **OPTIONS):
        before = time.time()
        with full(pool), tracer.start_as_current_span("request") as span:
            connection = pool.connect()
        time.sleep(SLOW)
        connection.close()  # in no span: the trace of the checkout is known
        found = of_registry(registry)
        assert found.keys() == {WAIT, HOLD}
        for name, some in found.items():
            (one,) = [each for each in some if each.labels == ids(span)]
            assert one.labels == ids(span)
            assert (
                SLOW * 0.9
                <= one.value
                <= RegistrySamples(registry).value(f"{name.removeprefix('sqlalchemy_pool_')}_sum", "orders")
            )
            assert one.timestamp is not None
            assert before - 0.001 <= float(one.timestamp) <= time.time() + 0.001


def test_formats(tracer: trace.Tracer, registry: CollectorRegistry) -> None:
    """Both formats are those of prometheus_client, byte for byte, and only OpenMetrics has exemplars."""
    pool = a_pool()
    with instrument(pool, registry=registry, **OPTIONS):
        with full(pool), tracer.start_as_current_span("request") as span:
            pool.connect().close()
        families = list(registry.collect())
    written, text = exposition.openmetrics(families), exposition.text(families)

    class Once:
        @staticmethod
        def collect() -> Iterable[Metric]:
            return families

    assert written == openmetrics_of(Once())
    assert text == generate_latest(Once())
    assert b"trace_id" not in text
    (line,) = [one for one in written.decode().splitlines() if "#" in one[1:] and WAIT in one]
    labels = line.partition(" # ")[2].partition(" ")[0]
    assert labels == '{{span_id="{span_id}",trace_id="{trace_id}"}}'.format(**ids(span))
    assert len(labels) <= 128


def test_a_long_hold_after_a_quick_checkout(tracer: trace.Tracer, registry: CollectorRegistry) -> None:
    """The span that is current at the return is that of the hold; the garbage collector has none."""
    pool = QueuePool(FakeConnection, pool_size=2)  # type: ignore[arg-type]
    with instrument(pool, registry=registry, **OPTIONS):
        # Outside of a span, or a checkout that a busy machine made slow would know it.
        connection = pool.connect()
        with tracer.start_as_current_span("request") as span:
            time.sleep(SLOW)
            connection.close()
        assert {name: [one.labels for one in some] for name, some in of_registry(registry).items()} == {
            HOLD: [ids(span)]
        }
        connection = pool.connect()
        with tracer.start_as_current_span("other"):
            time.sleep(2 * SLOW)
            del connection
            gc.collect()
        assert RegistrySamples(registry).value("leaked_checkouts_total", "orders") == 1
        assert [one.labels for one in of_registry(registry)[HOLD]] == [ids(span)]


def test_closed_while_it_was_out(tracer: trace.Tracer, registry: CollectorRegistry) -> None:
    """The hold of a connection that was invalidated has an exemplar, too."""
    pool = a_pool()
    with instrument(pool, registry=registry, **OPTIONS):
        with tracer.start_as_current_span("request") as span:
            connection = pool.connect()
            time.sleep(SLOW)
            connection.invalidate()
        assert [one.labels for one in of_registry(registry)[HOLD]] == [ids(span)]


def test_the_newest_one(tracer: trace.Tracer, registry: CollectorRegistry) -> None:
    """A bucket has the newest exemplar of all pools of the name; that of a pool that is gone goes with it."""
    pools = [a_pool(), a_pool()]
    handles = [instrument(pool, registry=registry, **OPTIONS) for pool in pools]
    last: dict[str, str] = {}
    for pool in (pools[0], pools[1], pools[0]):
        with full(pool), tracer.start_as_current_span("request") as span:
            pool.connect().close()
            last = ids(span)
    assert last in [one.labels for one in of_registry(registry)[WAIT]]
    handles[0].close()
    assert last not in [one.labels for one in of_registry(registry).get(WAIT, [])]
    handles[1].close()


# -- other spans, and none


@pytest.mark.parametrize(("flags", "has_exemplar"), [(TraceFlags.SAMPLED, True), (TraceFlags.DEFAULT, False)])
def test_a_span_that_does_not_record(flags: int, has_exemplar: bool, registry: CollectorRegistry) -> None:
    """A span of another process that goes on here gets no event, and an exemplar only if it is sampled."""
    pool = a_pool()
    span = NonRecordingSpan(SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(flags)))
    with instrument(pool, registry=registry, **OPTIONS), full(pool), use_span(span):
        pool.connect().close()
        found = of_registry(registry)
        assert RegistrySamples(registry).value("exporter_recording_faults_total", "orders") == 0
    assert [one.labels for one in found.get(WAIT, [])] == ([ids(span)] if has_exemplar else [])


def test_a_span_that_is_not_sampled(registry: CollectorRegistry) -> None:
    """Of a trace that the SDK does not sample there is no exemplar: nobody would find it."""
    pool = a_pool()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    with instrument(pool, registry=registry, **OPTIONS), full(pool):
        with provider.get_tracer(__name__).start_as_current_span("request"):
            pool.connect().close()
        assert of_registry(registry) == {}


def test_no_span(registry: CollectorRegistry) -> None:
    """Outside of a span nothing happens, and no page is taken."""
    pool = a_pool()
    with instrument(pool, registry=registry, **OPTIONS) as handle:
        with full(pool):
            pool.connect().close()
        (recorder,) = handle._recorders
        assert recorder.storage.exemplars_page == 0
        assert of_registry(registry) == {}


def test_without_opentelemetry() -> None:
    """An application that has not imported OpenTelemetry does not get it imported by a slow checkout."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=1, max_overflow=0)
        instrument(pool, name="p", registry=registry, trace_after=0.01)
        held = pool.connect()
        threading.Timer(0.05, held.close).start()
        pool.connect().close()
        assert samples()["exporter_recording_faults_total"] == 0
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
        """,
        prologue=PROLOGUE,
    )
    assert result.returncode == 0, result.stderr


# -- what goes wrong in a tracer


class BrokenError(Exception):
    """What a tracer raises."""


class TooLate(Exception):  # noqa: N818 - a time limit, as a task queue has
    """What a signal handler raises."""


class Broken(NonRecordingSpan):
    """A span that fails wherever it is told to."""

    def __init__(self, where: str, act: Callable[[], object]) -> None:
        super().__init__(SpanContext(5, 7, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        self._where, self._act = where, act

    def get_span_context(self) -> SpanContext:
        self._perhaps("get_span_context")
        return super().get_span_context()

    def is_recording(self) -> bool:
        self._perhaps("is_recording")
        return True

    def add_event(self, *_: Any, **__: Any) -> None:
        self._perhaps("add_event")

    def _perhaps(self, where: str) -> None:
        if where == self._where:
            self._act()


@pytest.mark.parametrize("error", [RuntimeError("no"), BrokenError("no"), BrokenError(), AssertionError()])
@pytest.mark.parametrize("where", ["get_span_context", "is_recording", "add_event"])
def test_a_broken_tracer(where: str, error: Exception, registry: CollectorRegistry) -> None:
    """What a tracer raises is counted as a fault and never reaches the application."""

    def fail() -> None:
        raise error

    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, trace_after=0.005):
        with full(pool, 0.02), use_span(Broken(where, fail), record_exception=False):
            pool.connect().close()
        samples = RegistrySamples(registry)
        assert samples.value("exporter_recording_faults_total", "orders") >= 1
        assert samples.value("checkouts_total", "orders") == 2
        assert samples.value("connections", "orders", state="in_use") == 0


def test_a_time_limit_in_a_tracer(registry: CollectorRegistry) -> None:
    """A time limit of the application that strikes in the tracer reaches it, and the connection goes back."""

    def too_late(_number: int, _frame: object) -> None:
        raise TooLate("too late")

    pool = a_pool()
    before = signal.signal(signal.SIGUSR1, too_late)
    try:
        span = Broken("add_event", lambda: signal.raise_signal(signal.SIGUSR1))
        with instrument(pool, name="orders", registry=registry, trace_after=0.005):
            with full(pool, 0.02), use_span(span, record_exception=False), pytest.raises(TooLate):
                pool.connect()
            samples = RegistrySamples(registry)
            assert samples.value("exporter_recording_faults_total", "orders") == 0
            assert samples.value("connections", "orders", state="in_use") == 0
        assert pool.checkedout() == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- the option


def test_the_option(
    tracer: trace.Tracer, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``trace_after`` comes from the argument, else the environment, else it is 0.1 s; 0 is never."""

    def threshold(**options: Any) -> float:
        with instrument(a_pool(), name="orders", registry=registry, **options) as handle:
            (recorder,) = handle._recorders
            return recorder.trace_after

    def has_exemplar(**options: Any) -> bool:
        pool = a_pool()
        with instrument(pool, name="orders", registry=registry, **options):
            with full(pool), tracer.start_as_current_span("request"):
                pool.connect().close()
            return bool(of_registry(registry))

    assert threshold() == 0.1
    assert has_exemplar(trace_after=0.01)
    assert not has_exemplar(trace_after=0)
    monkeypatch.setenv(environment.TRACE_AFTER, "0.01")
    assert has_exemplar()
    assert threshold(trace_after=0.02) == 0.02
    monkeypatch.setenv(environment.TRACE_AFTER, "soon")
    assert threshold() == 0.1
    with pytest.raises(TargetError, match="trace_after must be a number of seconds"):
        instrument(NullPool(FakeConnection), registry=registry, trace_after="x")  # type: ignore[arg-type]


def test_a_new_pool_of_the_engine(
    tracer: trace.Tracer, spans: InMemorySpanExporter, registry: CollectorRegistry
) -> None:
    """The pool that ``dispose()`` makes has the same threshold."""
    engine = create_engine("sqlite://", **SQLITE)
    with instrument(engine, registry=registry, **OPTIONS):
        engine.dispose()
        with full(engine.pool), tracer.start_as_current_span("request"):  # type: ignore[arg-type]
            engine.connect().close()
    assert event_of(spans)["db.client.connection.pool.name"] == "orders"
    engine.dispose()


# -- several processes


@contextmanager
def traced_processes(directory: Path, children: int = 3) -> Iterator[list[dict[str, str]]]:
    """Run forked processes, each with a slow checkout and a long hold; yield the traces and spans of these."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.traced_worker", str(directory), str(children)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        lines = [process.stdout.readline().split() for _ in range(children)]
        yield [{"trace_id": trace_id, "span_id": span_id} for trace_id, span_id in lines]
        process.stdin.close()


@pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks")
def test_forked_processes(tmp_path: Path) -> None:
    """The sidecar shows the exemplars of all forked processes; where two are in a bucket, the newer one."""
    with traced_processes(tmp_path) as said, Sidecar("--directory", tmp_path) as sidecar:
        status, text = sidecar.get(accept=OPENMETRICS)
        assert status == 200
        assert "trace_id" not in sidecar.get()[1]
        found = exemplars(text_string_to_metric_families(text))
        assert found.keys() == {WAIT, HOLD}
        for some in found.values():
            assert all(one.labels in said for one in some)
        # The last child waited for longest, in a bucket of its own; all held for as long.
        assert said[-1] in [one.labels for one in found[WAIT]]
        assert said[-1] in [one.labels for one in found[HOLD]]


@pytest.mark.newest  # the same text is read back with the oldest dependencies by the tests above
@pytest.mark.requires("prometheus")
@pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks")
def test_prometheus_stores_them(tmp_path: Path) -> None:
    """Prometheus takes the exemplars from the sidecar, and finds them by a query."""
    (directory := tmp_path / "segments").mkdir()
    with (
        traced_processes(directory, 1) as (said,),
        Sidecar("--directory", directory) as sidecar,
    ):
        config = scraping({"pools": [sidecar.url.removeprefix("http://")]}, interval="1s")
        with Prometheus(config, tmp_path / "prometheus", "--enable-feature=exemplar-storage") as prometheus:
            query = f"histogram_quantile(0.99, {WAIT}_bucket)"
            prometheus.wait_until(lambda: prometheus.exemplars(query), "exemplars")
            assert [one["labels"] for one in prometheus.exemplars(query)] == [said]
            assert [one["labels"] for one in prometheus.exemplars(f"{HOLD}_bucket")] == [said]
