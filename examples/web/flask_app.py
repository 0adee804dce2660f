# SPDX-License-Identifier: Apache-2.0
"""Flask, for ``flask --app examples.web.flask_app run``.

``DATABASE_URL`` is postgresql+psycopg://…
"""

import os

from flask import Flask
from sqlalchemy import create_engine, text
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sqlalchemy_pool_exporter import instrument, wsgi_app

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    # psycopg's way to set it: the server then shows these connections as "orders".
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")

app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": wsgi_app()})  # type: ignore[method-assign]


@app.get("/")
def orders() -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT generate_series(1, 3)")))
