# SPDX-License-Identifier: Apache-2.0
"""``instrument(db)`` of Flask-SQLAlchemy: the engines of all binds and applications, whenever they are made."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument, uninstrument
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry


@pytest.fixture
def applications(tmp_path: Path) -> Iterator[Any]:
    """Make applications for a database; their engines are disposed of."""
    made: list[tuple[SQLAlchemy, Flask]] = []

    def make(db: SQLAlchemy, number: int = 0) -> Flask:
        app = Flask(f"app{number}")
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/main{number}.db"
        app.config["SQLALCHEMY_BINDS"] = {"audit": f"sqlite:///{tmp_path}/audit{number}.db"}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": QueuePool}
        db.init_app(app)
        made.append((db, app))
        return app

    yield make
    for db, app in made:
        with app.app_context():
            for engine in db.engines.values():
                engine.dispose()


def use(db: SQLAlchemy, app: Flask) -> None:
    """Check out one connection of the default engine, and two of the bind."""
    with app.app_context():
        db.session.execute(text("select 1"))
        for _ in range(2):
            with db.engines["audit"].connect():
                pass


def checkouts(registry: CollectorRegistry) -> dict[str, float]:
    return {
        dict(labels)["pool"]: value
        for (name, labels), value in Exposition(registry).samples.items()
        if name == "sqlalchemy_pool_checkouts_total"
    }


def untouched(db: SQLAlchemy, app: Flask) -> bool:
    """Return whether the database and its pools have nothing of ours."""
    with app.app_context():
        return "init_app" not in vars(db) and not any("connect" in vars(e.pool) for e in db.engines.values())


def test_before_the_application_is_made(registry: CollectorRegistry, applications: Any) -> None:
    """As a module does that makes ``db`` for an application factory: engines are seen when they are made."""
    db = SQLAlchemy()
    handle = instrument(db, name="orders", registry=registry)
    assert "" == handle.name
    app = applications(db)
    use(db, app)
    assert {"orders": 1.0, "orders-audit": 2.0} == checkouts(registry)
    assert "orders, orders-audit" == handle.name
    assert "<DatabaseHandle pools='orders' 'orders-audit'>" == repr(handle)


def test_after_the_application_is_made(registry: CollectorRegistry, applications: Any) -> None:
    """Outside and inside of an application context the same engines are found."""
    db = SQLAlchemy()
    app = applications(db)
    handle = instrument(db, registry=registry)
    with app.app_context():
        assert handle is instrument(db, registry=registry)
    use(db, app)
    assert {"main0.db": 1.0, "audit0.db": 2.0} == checkouts(registry)


def test_several_applications(registry: CollectorRegistry, applications: Any) -> None:
    """All applications of one database are seen; pools of one name are summed."""
    db = SQLAlchemy()
    first = applications(db, 1)
    instrument(db, name="orders", registry=registry)
    second = applications(db, 2)
    use(db, first)
    use(db, second)
    assert {"orders": 2.0, "orders-audit": 4.0} == checkouts(registry)


@pytest.mark.parametrize("by_handle", [True, False])
def test_uninstrument(registry: CollectorRegistry, applications: Any, *, by_handle: bool) -> None:
    """All is taken back: every pool, and the database, whose later engines are left alone."""
    db = SQLAlchemy()
    first = applications(db, 1)
    handle = instrument(db, name="orders", registry=registry)
    assert not untouched(db, first)
    assert not handle.closed
    if by_handle:
        handle.close()
    else:
        uninstrument(db)
        uninstrument(db)
    assert handle.closed
    assert untouched(db, first)
    assert untouched(db, applications(db, 2))
    assert {} == checkouts(registry)
    with instrument(db, name="again", registry=registry):
        use(db, first)
        assert {"again": 1.0, "again-audit": 2.0} == checkouts(registry)
    assert untouched(db, first)


def test_init_app_again(registry: CollectorRegistry, applications: Any) -> None:
    """An application that is initialized again gets new engines, which are seen, too."""
    db = SQLAlchemy()
    instrument(db, name="orders", registry=registry)
    app = applications(db)
    use(db, app)
    del app.extensions["sqlalchemy"]
    db.init_app(app)
    use(db, app)
    assert {"orders": 2.0, "orders-audit": 4.0} == checkouts(registry)


def test_wrapped_by_others(registry: CollectorRegistry, applications: Any) -> None:
    """A method that the application wrapped stays; what is under it instruments nothing any more."""
    db = SQLAlchemy()
    instrument(db, registry=registry)
    ours = db.init_app

    def wrapper(app: Flask) -> None:
        ours(app)

    db.init_app = wrapper  # type: ignore[method-assign]
    uninstrument(db)
    app = applications(db)
    with app.app_context():
        assert not any("connect" in vars(engine.pool) for engine in db.engines.values())


@pytest.mark.parametrize("arguments", [{"leak_after": -1}, {"name": ""}, {"registry": None}, {"sites": 2}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    """They are an error at once, although there is no engine yet."""
    db = SQLAlchemy()
    with pytest.raises(TargetError):
        instrument(db, **arguments)
    assert "init_app" not in vars(db)


def test_the_database_is_not_kept_alive(registry: CollectorRegistry) -> None:
    """Nothing here refers to it."""
    db = SQLAlchemy()
    instrument(db, registry=registry)
    reference = weakref.ref(db)
    del db
    gc.collect()
    assert reference() is None


def test_the_package_is_not_imported() -> None:
    """An application without Flask-SQLAlchemy does not load it."""
    program = (
        "import sys; from sqlalchemy import create_engine;"
        "from sqlalchemy_pool_exporter import instrument, uninstrument;"
        "engine = create_engine('sqlite://'); instrument(engine); uninstrument(engine);"
        "print([name for name in sys.modules if name.startswith('flask')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert "[]\n" == done.stdout
