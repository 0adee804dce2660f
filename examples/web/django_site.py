# SPDX-License-Identifier: Apache-2.0
"""Django beside SQLAlchemy, for ``gunicorn examples.web.django_site:application``.

``DATABASE_URL`` is postgresql+psycopg://…
Django's own ORM has connections of its own, which are no pool of SQLAlchemy's, and are not shown.
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument, wsgi_app

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")  # in a project: in the module that makes the engine


def orders(_request: HttpRequest) -> JsonResponse:
    with engine.connect() as connection:
        return JsonResponse({"orders": list(connection.scalars(text("SELECT generate_series(1, 3)")))})


# In a project these are settings.py and urls.py.
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
urlpatterns = [path("", orders)]

# In a project this is wsgi.py. What is before Django has neither its middleware nor its redirects to a final slash.
django, metrics = get_wsgi_application(), wsgi_app()


def application(environ, start_response):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    handler = metrics if environ["PATH_INFO"] == "/metrics" else django
    return handler(environ, start_response)
