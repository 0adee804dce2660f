# SPDX-License-Identifier: Apache-2.0
"""The page in Debian's Chromium that checks and draws dashboards with Grafana's code."""

from __future__ import annotations

import contextlib
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tests.support import grafana
from tests.support.browser import chromium, limited
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.support.grafana import Board

    from .answers import Json

URL = "http://dashboards.invalid/"
HTML = (
    "<!doctype html><meta charset=utf-8><title>dashboards</title><link rel=stylesheet href=page.css>"
    "<body></body><script src=page.js></script>"
)
FONTS = "node_modules/@fontsource/inter/files"
FONT_FILES = {
    "Inter-Regular": "inter-latin-400-normal.woff2",
    "Inter-Medium": "inter-latin-500-normal.woff2",
    "Inter-Italic": "inter-latin-400-italic.woff2",
    "Inter-MediumItalic": "inter-latin-500-italic.woff2",
}
EMPTY = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"></svg>'
INFORMATION = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20Z'
    'm0 18a8 8 0 1 1 0-16 8 8 0 0 1 0 16Zm-1-9h2v6h-2Zm0-4h2v2h-2Z"/></svg>'
)
RUNBOOKS = sorted(path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md"))

Mode = Literal["dark", "light"]


class Look(NamedTuple):
    """How a dashboard is drawn: Grafana's theme, and the width of the window in pixels."""

    mode: Mode
    width: int


DESKTOP, PHONE = Look("dark", 1440), Look("dark", 390)


class Fault(NamedTuple):
    """What is wrong with a panel."""

    board: str
    panel: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.kind}: {self.detail}"


class Grafana:
    """Grafana's front-end code in a page of a browser. Mutable state: the page, and what the browser complained of."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._said: list[str] = []
        page.on(
            "console", lambda message: self._said.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: self._said.append(str(error)))

    def with_data(self, name: str, board: Board, answers: Json) -> list[Fault]:
        """Return what is wrong with a dashboard by the answers of a time in which every query found something."""
        boards = [grafana.load(one) for one in grafana.NAMES]
        return self._faults(name, "withData", board, answers, boards, RUNBOOKS)

    def blind(self, name: str, board: Board, answers: Json, state: str) -> list[Fault]:
        """Return the panels that look healthy by the answers of a time in which nothing was seen."""
        return self._faults(name, "blind", board, answers, state)

    def draw(
        self, name: str, board: Board, answers: Json, look: Look = DESKTOP, path: Path | None = None
    ) -> list[Fault]:
        """Draw a dashboard, into a file if there is one, and return what does not fit or is not there."""
        with limited():
            # A table draws only rows that are in sight.
            self._page.set_viewport_size({"width": look.width, "height": _height(board)})
            self._page.emulate_media(color_scheme=look.mode)
            # What is said as a time ago must be so before the end of the range.
            self._page.clock.set_fixed_time(datetime.fromtimestamp(answers["end"], UTC))
        faults = self._faults(name, "draw", board, answers, look.mode, look.width)
        if path is not None:
            with limited():
                self._page.locator("#board").screenshot(path=path, animations="disabled")
        return faults

    def interpolated(self, values: list[str]) -> str:
        """Return what a query has in the place of a variable of which these values are chosen."""
        with limited():
            text: str = self._page.evaluate("values => window.dashboards.interpolated(values)", values)
        return text

    def _faults(self, name: str, function: str, *arguments: object) -> list[Fault]:
        self._said.clear()
        with limited():
            found: list[dict[str, Any]] = self._page.evaluate(
                "([name, values]) => window.dashboards[name](...values)", [function, list(arguments)]
            )
        faults = [Fault(name, one["panel"], one["kind"], one["detail"]) for one in found]
        return faults + [Fault(name, "", "complaint", text) for text in self._said]


@contextmanager
def opened(build: Path) -> Iterator[Grafana]:
    """Start a browser and open the page of which ``build`` has the scripts."""
    with chromium() as browsers, contextlib.closing(browsers.get().new_context()) as context:
        context.route("**/*", partial(_serve, build))
        page = context.new_page()
        code = Grafana(page)
        page.goto(URL)
        yield code


def _height(board: Board) -> int:
    """Return more than the height of a dashboard in pixels, also on a phone, with its panels below each other."""
    rows: int = sum(panel["gridPos"]["h"] for panel in board["panels"])
    return 200 + 38 * rows


def _serve(build: Path, route: Route) -> None:
    """Answer the requests of the page; nothing leaves the machine."""
    path = route.request.url.removeprefix(URL)
    if path in {"page.js", "page.css"}:
        route.fulfill(path=build / "out" / path)
    elif path == "":
        route.fulfill(body=HTML, content_type="text/html")
    elif path.endswith(".woff2"):
        route.fulfill(
            path=build / FONTS / FONT_FILES.get(PurePosixPath(path).stem, FONT_FILES["Inter-Regular"])
        )
    elif path.endswith(".svg"):
        # No package carries the icons of Grafana's fonts.
        route.fulfill(body=INFORMATION if "info" in path else EMPTY, content_type="image/svg+xml")
    else:
        route.abort()
