# SPDX-License-Identifier: Apache-2.0
"""A Flask application that checks connections out through Flask-SQLAlchemy; each path has one function as site."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, current_app, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, text
from sqlalchemy.orm import Mapped, mapped_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE = text("select 1")
db = SQLAlchemy()
orders = Blueprint("orders", __name__, url_prefix="/orders")


class Order(db.Model):  # type: ignore[name-defined,misc,unused-ignore]
    """An order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String, default="")


def look() -> None:
    current_app.extensions["look"]()


@orders.get("/session")
def through_session() -> str:
    db.session.execute(ONE)
    look()
    return ""


@orders.get("/model/<int:number>")
def through_model(number: int) -> str:
    db.get_or_404(Order, number)
    look()
    return ""


@orders.get("/query")
def through_query() -> str:
    Order.query.all()
    look()
    return ""


@orders.get("/page")
def through_pagination() -> str:
    db.paginate(db.select(Order))
    look()
    return ""


def signed_in(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def checked(**options: Any) -> Any:
        db.session.execute(ONE)
        return view(**options)

    return checked


@orders.get("/decorated")
@signed_in
def through_decorator() -> str:
    look()
    return ""


@orders.get("/stream")
def through_stream() -> Response:
    def rows() -> Iterator[str]:
        db.session.execute(ONE)
        look()
        yield "1"

    return Response(stream_with_context(rows()))


@orders.get("/late")
def through_late_stream() -> Response:
    engine, look_at = db.engine, current_app.extensions["look"]

    def rows() -> Iterator[str]:
        with engine.connect():
            look_at()
            yield "1"

    return Response(rows())


SITES = {
    "session": "through_session",
    "model/1": "through_model",
    "query": "through_query",
    "page": "through_pagination",
    "decorated": "signed_in.<locals>.checked",
    "stream": "through_stream.<locals>.rows",
    "late": "through_late_stream.<locals>.rows",
}
ROUTES = {"model/1": "model/<int:number>"}


def make(url: str) -> Flask:
    """Make the application, with an order."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    app.register_blueprint(orders)
    with app.app_context():
        db.create_all()
        db.session.add(Order(id=1))
        db.session.commit()
    return app
