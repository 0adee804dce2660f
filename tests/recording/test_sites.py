# SPDX-License-Identifier: Apache-2.0
"""Where a checkout comes from: the innermost frame of the application's own code."""

from __future__ import annotations

import _thread
import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import greenlet
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment.page import SITES_PER_PAGE
from sqlalchemy_pool_exporter.segment.sites import MOST_SITES
from tests.support import site_app, wait
from tests.support.samples import Exposition, RegistrySamples
from tests.support.segments import FORKS
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

pytestmark = pytest.mark.usefixtures("leave_nothing")

POOL = "orders"


@pytest.fixture
def an_engine() -> Iterator[Callable[..., Engine]]:
    """Make engines that record the site of each checkout; the test leaves them no connection."""
    with ExitStack() as stack:

        def make(registry: CollectorRegistry, **options: Any) -> Engine:
            engine = create_engine(
                "sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False}
            )
            stack.callback(engine.dispose)
            instrument(engine, name=POOL, registry=registry, **{"sites": True} | options)
            return engine

        yield make


def by_site(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """Return the values of a metric that are not 0, by site; without the numbers of lines."""
    return {
        dict(labels)["site"].rpartition(":")[0] or "other": value
        for (metric, labels), value in RegistrySamples(registry).samples.items()
        if metric == f"sqlalchemy_pool_{name}" and value
    }


@pytest.mark.parametrize(
    ("use", "site"), site_app.SYNCHRONOUS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_the_site_is_the_application_s_innermost_frame(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, use: Callable[..., None], site: str
) -> None:
    """Through SQLAlchemy, context managers, generators and thread pools, the application's own function is named."""
    engine = an_engine(registry)
    held: list[dict[str, float]] = []
    use(engine, lambda: held.append(by_site(registry, "held_connections")))
    expected = {f"tests.support.site_app:{site}": 1.0}
    assert held == [expected]
    assert by_site(registry, "held_connections") == {}
    assert by_site(registry, "checkouts_by_site_total") == expected
    assert by_site(registry, "hold_seconds_by_site_count") == expected
    engine.dispose()


@pytest.mark.parametrize(
    ("use", "site"), site_app.ASYNCHRONOUS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_the_site_behind_a_greenlet(registry: CollectorRegistry, use: Callable[..., Any], site: str) -> None:
    """An asyncio engine checks out in a greenlet; the coroutine that awaits it is named."""
    held: list[dict[str, float]] = []

    async def run() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        instrument(engine, name=POOL, registry=registry)
        await use(engine, lambda: held.append(by_site(registry, "held_connections")))
        await use(engine, lambda: held.append(by_site(registry, "held_connections")))
        await engine.dispose()

    asyncio.run(run())
    assert held == [{f"tests.support.site_app:{site}": 1.0}] * 2
    assert by_site(registry, "checkouts_by_site_total") == {f"tests.support.site_app:{site}": 2.0}


def test_a_thread_that_begins_with_the_checkout(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """No frame calls the checkout: it counts as "other", and as no fault."""
    pool: Any = an_engine(registry).pool
    for _ in range(2):
        _thread.start_new_thread(pool.connect, ())
        assert wait.eventually(lambda: pool.checkedin() == 1)
    assert wait.eventually(lambda: by_site(registry, "checkouts_by_site_total") == {"other": 2.0})
    assert Exposition(registry).value("exporter_recording_faults_total", POOL) == 0


def test_a_greenlet_that_begins_with_the_checkout(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """Its parent is the site."""
    pool = an_engine(registry).pool
    for _ in range(2):
        greenlet.greenlet(pool.connect).switch().close()
    site = f"{__name__}:{test_a_greenlet_that_begins_with_the_checkout.__name__}"
    assert by_site(registry, "checkouts_by_site_total") == {site: 2.0}
    assert Exposition(registry).value("exporter_recording_faults_total", POOL) == 0


@pytest.mark.parametrize("calls", range(6))
def test_a_listener_that_checks_out_as_deep(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, calls: int
) -> None:
    """A listener of a session is the site of what it checks out, also if that is as deep as what the session does."""
    engine = an_engine(registry)
    session = type("Listened", (Session,), {})

    def listen(_state: object) -> None:
        if is_listening[-1]:
            log(engine, calls)

    event.listen(session, "do_orm_execute", listen)
    is_listening: list[bool] = []
    for at in range(6):
        is_listening.append(at >= 3)
        with session(engine) as one:
            one.execute(site_app.ONE)
    name = "test_a_listener_that_checks_out_as_deep"
    assert by_site(registry, "checkouts_by_site_total") == {f"{__name__}:{name}": 6.0, f"{__name__}:log": 3.0}


def log(engine: Engine, calls: int) -> None:
    if calls:
        log(engine, calls - 1)
    else:
        engine.connect().close()


def test_lines(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """Two places of one function are two sites, told apart by their lines."""
    engine = an_engine(registry)
    for _ in range(2):
        engine.connect().close()
        engine.connect().close()
    line = test_lines.__code__.co_firstlineno + 3
    sites = {
        dict(labels)["site"].rpartition(":")[2]: value
        for (name, labels), value in RegistrySamples(registry).samples.items()
        if name == "sqlalchemy_pool_checkouts_by_site_total" and value
    }
    assert sites == {str(line + 1): 2.0, str(line + 2): 2.0}


def test_one_place_that_calls_different_functions(  # noqa: C901 - one function for each way
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """What is known of a place names no function that the place did not reach this time, however alike the stacks."""
    engine = an_engine(registry)

    class OwnSession(Session):
        """A session of the application."""

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            """Check out in a function of the application's own."""
            return super().execute(*args, **kwargs)

    def engine_connect() -> None:
        engine.connect().close()

    def pool_connect() -> None:
        engine.pool.connect().close()

    def raw() -> None:
        engine.raw_connection().close()

    def as_deep_as_the_engine() -> None:
        raw()

    def session(kind: type[Session]) -> None:
        with kind(engine) as one:
            one.execute(text("SELECT 1"))

    def nested(turn: int) -> None:
        def handler(_state: Any) -> None:
            engine.connect().close()

        with Session(engine) as one:
            if turn % 2:
                event.listen(one, "do_orm_execute", handler)
            one.execute(text("SELECT 1"))

    def call(function: Callable[[], Any]) -> Any:
        return function()

    turns = 6
    for turn in range(turns):
        call(lambda: call(engine.connect)).close()
        call(engine.connect).close()
        call(engine.raw_connection).close()
        call(engine.pool.connect).close()
        for function in (engine_connect, pool_connect, raw, as_deep_as_the_engine):
            call(function)
        session(Session)
        session(OwnSession)
        nested(turn)
    prefix = f"{__name__}:{test_one_place_that_calls_different_functions.__qualname__}.<locals>."
    assert {
        site.removeprefix(prefix): count
        for site, count in by_site(registry, "checkouts_by_site_total").items()
    } == {
        "call": 4 * turns,
        "engine_connect": turns,
        "pool_connect": turns,
        "raw": 2 * turns,
        "session": turns,
        "OwnSession.execute": turns,
        "nested": turns,
        "nested.<locals>.handler": turns / 2,
    }


def test_codes_that_come_and_go(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """An application that makes functions for ever has its sites right, and nothing is kept of those that are gone."""
    engine = an_engine(registry)
    for turn in range(300):
        names: dict[str, Any] = {"engine": engine, "__name__": "made"}
        exec(f"\n\ndef use_{turn % 3}(): engine.connect().close()", names)  # noqa: S102 - as many functions
        for _ in range(3):
            names[f"use_{turn % 3}"]()
        del names
    assert by_site(registry, "checkouts_by_site_total") == {f"made:use_{at}": 300.0 for at in range(3)}
    gc.collect()
    *_, recorder = [
        one for one in INSTRUMENTED.recorders if one.identity.name == POOL
    ]  # after those of other tests
    assert recorder.origins is not None
    places = recorder.origins._places
    assert len(places.entries) == 0
    assert sum(len(sites) for _, by_callee in places.shortcuts for sites in by_callee.values()) == 0


def test_sums_over_sites_are_the_totals(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """More sites than there is room for are counted as other, and every sum is the total."""
    engine = an_engine(registry)
    number = SITES_PER_PAGE + 10
    for at in range(number):
        for _ in range(1 + at % 3):
            exec(f"def use_{at}(engine): engine.connect().close()", globals())  # noqa: S102 - as many functions
            globals()[f"use_{at}"](engine)
    samples = RegistrySamples(registry)
    checkouts = by_site(registry, "checkouts_by_site_total")
    assert len(checkouts) == MOST_SITES + 1
    assert sum(checkouts.values()) == samples.value("checkouts_total", POOL)
    holds = by_site(registry, "hold_seconds_by_site_count")
    assert sum(holds.values()) == samples.value("hold_seconds_count", POOL)
    seconds = sum(by_site(registry, "hold_seconds_by_site_sum").values())
    assert seconds == pytest.approx(samples.value("hold_seconds_sum", POOL))


def test_a_library_that_calls_the_application_back(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """A library is called from one place, and calls now a function of its own, now one of the application, as deep."""
    engine = an_engine(registry)
    library: dict[str, Any] = {"__name__": "library", "ONE": site_app.ONE}
    source = "def call(function, session): function(session)\n\ndef own(session): session.execute(ONE)\n"
    exec(compile(source, "/usr/lib/python3/site-packages/library.py", "exec"), library)  # noqa: S102 - as if installed
    shop: dict[str, Any] = {"__name__": "shop", **{name: library[name] for name in ("call", "own", "ONE")}}
    source = (
        "def back(session): session.execute(ONE)\n\ndef run(functions, session):\n"
        "    for one in functions:\n        call(one, session)\n        session.rollback()\n"
    )
    exec(compile(source, "/srv/shop.py", "exec"), shop)  # noqa: S102 - as an application
    session = Session(engine)
    shop["run"]([shop["own"]] * 3, session)
    shop["run"]([shop["back"]] * 3, session)
    assert by_site(registry, "checkouts_by_site_total") == {"shop:run": 3.0, "shop:back": 3.0}
    for _ in range(3):
        shop["run"]([shop["own"], shop["back"]], session)
    assert by_site(registry, "checkouts_by_site_total") == {"shop:run": 6.0, "shop:back": 6.0}


def test_code_that_is_made_again_and_again(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """What is known of a code goes with it: an application that makes code for ever does not grow."""
    engine = an_engine(registry)
    codes = []
    for at in range(200):
        names: dict[str, Any] = {"__name__": "made"}
        exec(f"def use(engine): engine.connect().close()  # {at}", names)  # noqa: S102 - as many codes
        names["use"](engine)
        codes.append(weakref.ref(names["use"].__code__))
    del names
    gc.collect()
    assert [code for code in codes if code() is not None] == []
    assert by_site(registry, "checkouts_by_site_total") == {"made:use": 200.0}


class Loud(dict[str, Any]):
    """A namespace whose methods raise."""

    def get(self, *_: object) -> Any:
        raise ZeroDivisionError


class Name:
    """A name that raises."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("names", "site"),
    [
        ({"__name__": "shop\nforged"}, "other"),
        ({"__name__": 'shop"} 1\\'}, 'shop"} 1\\:use'),
        ({"__name__": "läden"}, "läden:use"),
        ({"__name__": "m" * 10_000}, "…" + "m" * 103 + ":use"),
        (Loud({"__name__": "shop"}), "shop:use"),
        ({"__name__": Name()}, "tests.recording.test_sites:test_names_of_any_kind"),
        ({"__name__": 7}, "tests.recording.test_sites:test_names_of_any_kind"),
        ({}, "tests.recording.test_sites:test_names_of_any_kind"),
    ],
    ids=["newline", "quotes", "letters", "long", "namespace", "raises", "number", "none"],
)
def test_names_of_any_kind(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, names: dict[str, Any], site: str
) -> None:
    """Whatever code calls itself, the checkout goes on and is counted, and the exposition can be read."""
    engine = an_engine(registry)
    exec("def use(engine): engine.connect().close()", names)  # noqa: S102 - a function of any module
    use = dict.__getitem__(names, "use")
    for _ in range(3):
        use(engine)
    samples = Exposition(registry)
    assert samples.value("checkouts_total", POOL) == 3.0
    assert samples.value("exporter_recording_faults_total", POOL) == 0.0
    assert_sites_add_up(samples, POOL)
    assert by_site(registry, "checkouts_by_site_total") == {site: 3.0}


def test_counts_outlive_their_pools(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, tmp_path: Path
) -> None:
    """Engines that come and go have one set of sites, whose counts only grow, in memory and in a directory."""
    for directory in (None, tmp_path):
        own = CollectorRegistry()
        for number in range(1, 6):
            engine = an_engine(own, directory=directory)
            site_app.core(engine, lambda: None)
            engine.dispose()
            del engine
            assert by_site(own, "checkouts_by_site_total") == {"tests.support.site_app:core": float(number)}


def test_off(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites can be switched off by an argument and by the environment; then nothing is shown of them."""
    an_engine(registry, sites=False).connect().close()
    own = CollectorRegistry()
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_SITES", "off")
    an_engine(own, sites=None).connect().close()
    for one in (registry, own):
        assert RegistrySamples(one).value("checkouts_total", POOL) == 1.0
        assert by_site(one, "checkouts_by_site_total") == by_site(one, "held_connections") == {}


@pytest.mark.parametrize("has_directory", [True, False])
def test_some_processes_record_none(
    an_engine: Callable[..., Engine],
    registry: CollectorRegistry,
    tmp_path: Path,
    has_directory: bool,
) -> None:
    """If another pool records sites, all of one that does not is at the site ``other``, also when it is gone."""
    options = {"directory": tmp_path} if has_directory else {}
    on, off = an_engine(registry, **options), an_engine(registry, sites=False, **options)
    site_app.core(on, lambda: None)
    off.connect().close()
    kept = off.connect()
    kept.detach()
    kept.close()
    with off.connect():
        assert by_site(registry, "checkouts_by_site_total") == {
            "tests.support.site_app:core": 1.0,
            "other": 3.0,
        }
        assert by_site(registry, "held_connections") == {"other": 1.0}
        assert_sites_add_up(RegistrySamples(registry), POOL)
    raw = off.raw_connection()
    del raw  # leaked
    off.dispose()
    del off
    gc.collect()
    assert by_site(registry, "checkouts_by_site_total") == {"tests.support.site_app:core": 1.0, "other": 4.0}
    assert_sites_add_up(RegistrySamples(registry), POOL)


INSTALLED = """
import sys
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import QueuePool
from prometheus_client import REGISTRY
from sqlalchemy_pool_exporter import TargetError, instrument
import shop, helper

engine = create_engine("sqlite://", poolclass=QueuePool)
instrument(engine, name="orders", sites=True)
for _ in range(int(sys.argv[1])):
    helper.call(shop.pay, engine)
for family in REGISTRY.collect():
    for sample in family.samples:
        if sample.name.endswith("checkouts_by_site_total") and sample.value:
            print(sample.labels["site"], sample.value)
"""


def run_installed(tmp_path: Path, number: int, **environment: str) -> dict[str, float]:
    """Run an application that is installed like a library; return the checkouts by site."""
    site = tmp_path / "site-packages"
    site.mkdir(exist_ok=True)
    (site / "shop.py").write_text("def pay(engine):\n    engine.connect().close()\n")
    (site / "helper.py").write_text("def call(function, engine):\n    function(engine)\n")
    (site / "started.py").write_text(INSTALLED)
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-m", "started", str(number)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in out.splitlines()}


def test_an_installed_application(tmp_path: Path) -> None:
    """Without a frame of its own, the innermost library is named, at first and after many checkouts."""
    assert run_installed(tmp_path, 3) == {"shop:pay:2": 3.0}
    assert run_installed(tmp_path, 100) == {"shop:pay:2": 100.0}


def test_prefixes(tmp_path: Path) -> None:
    """An application that is installed like a library says which modules are its own."""
    found = run_installed(tmp_path, 3, SQLALCHEMY_POOL_EXPORTER_APPLICATION="helper, other")
    assert found == {"helper:call:2": 3.0}


def test_prefixes_as_people_write_them(tmp_path: Path) -> None:
    """A prefix may end with a dot, or with a dot and a star."""
    for prefix in ("helper.", "helper.*"):
        assert run_installed(tmp_path, 1, SQLALCHEMY_POOL_EXPORTER_APPLICATION=prefix) == {
            "helper:call:2": 1.0
        }


@pytest.mark.parametrize("wrong", ["orders", [1], [""], ["-"], 1], ids=repr)
def test_wrong_prefixes(registry: CollectorRegistry, an_engine: Callable[..., Engine], wrong: Any) -> None:
    """A string is no list of prefixes: each of its letters would be one, and no site be right."""
    with pytest.raises(TargetError, match="application must be a list of prefixes of modules"):
        an_engine(registry, application=wrong)


def test_a_frozen_application(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """The standard library is none of the application where no module has a whole path, as PyInstaller makes them."""
    source = "def work(engine):\n    enter(engine)\n"
    library = "def enter(engine):\n    engine.connect().close()\n"
    contextlib: dict[str, Any] = {"__name__": "contextlib"}
    exec(compile(library, "contextlib.py", "exec"), contextlib)  # noqa: S102 - as a frozen one
    application: dict[str, Any] = {"__name__": "shop.jobs", "enter": contextlib["enter"]}
    exec(compile(source, "shop/jobs.py", "exec"), application)  # noqa: S102 - as above
    engine = an_engine(registry)
    application["work"](engine)
    assert by_site(registry, "checkouts_by_site_total") == {"shop.jobs:work": 1.0}


def test_excluded_modules(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """The caller of an excluded module is the site, and that module only where it has no caller in the application."""
    engine = an_engine(registry, application=["-tests.support"])
    for _ in range(100):  # more than it takes to find that an application is installed
        thread = threading.Thread(target=site_app.core, args=(engine, lambda: None))
        thread.start()
        thread.join()
    for _ in range(3):
        with site_app.manager(engine):
            pass
    assert by_site(registry, "checkouts_by_site_total") == {
        "tests.support.site_app:core": 100.0,
        f"{__name__}:test_excluded_modules": 3.0,
    }


def test_a_pool_that_keeps_nothing(registry: CollectorRegistry) -> None:
    """A NullPool has sites, too."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    instrument(engine, name=POOL, registry=registry)
    site_app.session(engine, lambda: None)
    assert by_site(registry, "checkouts_by_site_total") == {"tests.support.site_app:session": 1.0}


@FORKS
@pytest.mark.parametrize("in_directory", [False, True])
def test_a_forked_child_has_its_own(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, tmp_path: Path, in_directory: bool
) -> None:
    """A child begins with no sites; with a directory both are summed."""
    engine = an_engine(registry, directory=tmp_path if in_directory else None)
    site_app.core(engine, lambda: None)
    engine.dispose()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        site_app.core(engine, lambda: None)
        site_app.begin(engine, lambda: None)
        os.write(write, json.dumps(by_site(registry, "checkouts_by_site_total")).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    seen = json.loads(os.read(read, 1000))
    name = "tests.support.site_app:"
    both = {f"{name}core": 1.0 + in_directory, f"{name}begin": 1.0}
    assert seen == both
    own = {f"{name}core": 1.0}
    assert by_site(registry, "checkouts_by_site_total") == (both if in_directory else own)
