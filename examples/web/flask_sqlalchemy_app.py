# SPDX-License-Identifier: Apache-2.0
"""Flask-SQLAlchemy, for ``flask --app examples.web.flask_sqlalchemy_app run``.

``DATABASE_URL`` is postgresql+psycopg://…
"""

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sqlalchemy_pool_exporter import instrument, wsgi_app

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "pool_size": 5,
    "max_overflow": 10,
    "connect_args": {"application_name": "orders"},
}
db = SQLAlchemy(app)
instrument(db, name="orders")  # the engines of all binds; before or after init_app(), without a context

app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": wsgi_app()})  # type: ignore[method-assign]


@app.get("/")
def orders() -> list[int]:
    return list(db.session.scalars(text("SELECT generate_series(1, 3)")))
