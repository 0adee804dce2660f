# SPDX-License-Identifier: Apache-2.0
"""ASGI and WSGI middlewares that label checkouts with the route of the request, such as ``GET /orders/{id}``.

The path of a request has identifiers, of which there are too many. The framework knows the route, but only after it got
the request from its middlewares; so a checkout looks it up, see ``Label``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .labels import Label, current_label

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, MutableMapping

    Scope = MutableMapping[str, Any]
    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
    Labelled = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]
    WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

# Clients can invent methods, and a process has room for few texts.
_METHODS: Final = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))


def asgi_labels(app: ASGIApp) -> Labelled:
    """Return an ASGI application that labels the checkouts of another one with the route of their request.

    It knows the routes of FastAPI and Starlette, for example by ``app.add_middleware(asgi_labels)``.

    Args:
        app: the application.
    """

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await app(scope, receive, send)
            return
        with _Labelled(Label(partial(_route_in, scope))):
            await app(scope, receive, send)

    return application


def wsgi_labels(app: WSGIApp) -> WSGIApp:
    """Return a WSGI application that labels the checkouts of another one with the route of their request.

    It knows the routes of Flask, for example by ``app.wsgi_app = wsgi_labels(app.wsgi_app)``.

    Args:
        app: the application.
    """

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = _FlaskRequest(environ)
        label = Label(request.route)

        def start(*arguments: Any, **options: Any) -> Any:
            request.keep()
            return start_response(*arguments, **options)

        with _Labelled(label):
            body = app(environ, start)
        if isinstance(body, (list, tuple)) or _is_file(body, environ.get("wsgi.file_wrapper")):
            return body
        return _Body(body, label)

    return application


class _Labelled:
    """A context manager that labels what is inside. One made from a generator would take several times as long."""

    __slots__ = ("_label", "_token")

    def __init__(self, label: Label) -> None:
        self._label = label

    def __enter__(self) -> None:
        self._token = current_label.set(self._label)

    def __exit__(self, *_: object) -> None:
        try:
            current_label.reset(self._token)
        except ValueError:  # a coroutine that nothing awaits any more is closed in any context
            return


# -- ASGI


def _route_in(scope: Scope) -> str | None:
    """Return the method and the route of a request, or None if it has not been routed."""
    route, path_parameters = scope.get("route"), scope.get("path_params", {})
    # Newer releases of FastAPI keep the prefix of an included router apart from the route.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    if included is not None and included.original_route is route:
        route = included
    path = getattr(route, "path", None)
    if path is None:
        # Older releases of Starlette say only which function answers.
        endpoint = scope.get("endpoint")
        name = getattr(endpoint, "__qualname__", None)
        return name and _with_method(scope, f"{endpoint.__module__}.{name}")
    # The path below which an application is mounted is constant, unless it has parameters.
    if "app_root_path" in scope and path_parameters.keys() == getattr(route, "param_convertors", {}).keys():
        path = scope["root_path"][len(scope["app_root_path"]) :] + path
    return _with_method(scope, path)


def _with_method(scope: Scope, path: str) -> str:
    method = scope.get("method", "WEBSOCKET")
    return f"{method} {path}" if method in _METHODS or scope["type"] == "websocket" else path


# -- WSGI


class _FlaskRequest:
    """The request of Flask for an environment of WSGI. Mutable state: the request, as soon as Flask made one."""

    __slots__ = ("_environ", "_request")

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self._request: Any = None

    def keep(self) -> None:
        """Find the request. Flask forgets it before a server iterates over the body of a streaming response."""
        self._request = self._environ.get("werkzeug.request") or self._request

    def route(self) -> str | None:
        """Return the method and the route, or None if the request has not been routed."""
        self.keep()
        rule = getattr(self._request, "url_rule", None)
        if rule is None:
            return None
        method = self._environ.get("REQUEST_METHOD")
        return f"{method} {rule.rule}" if method in _METHODS else str(rule.rule)


class _Body:
    """The body of a response, over which a server iterates after the application returned."""

    __slots__ = ("_body", "_chunks", "_label")

    def __init__(self, body: Iterable[bytes], label: Label) -> None:
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._label = label

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        # Not for all of the body: a server that does not close it would keep the label.
        with _Labelled(self._label):
            if self._chunks is None:
                self._chunks = iter(self._body)
            return next(self._chunks)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            with _Labelled(self._label):
                close()


def _is_file(body: object, wrapper: object) -> bool:
    """Return whether a server may send a file by itself, for which it must get this very object."""
    return hasattr(body, "read") or (isinstance(wrapper, type) and isinstance(body, wrapper))
