# SPDX-License-Identifier: Apache-2.0
"""The documentation site that ``make docs`` builds: it has every page, its links lead somewhere, and it is searched."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.paths import ROOT
from tools import build_docs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.newest, pytest.mark.soak]

QUESTIONS = ["Start", "Understand", "Operate", "Tune", "Reference"]


class Html(HTMLParser):
    """What a page refers to, what it loads, and the anchors in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in {"script", "img", "iframe"} and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as ``make docs`` does."""
    pytest.importorskip("sphinx")
    directory = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "tools.build_docs", directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    """Return the site's pages."""
    return {path: Html(path) for path in site.rglob("*.html")}


def test_order_of_a_readers_questions() -> None:
    """The parts of the navigation are in the order in which a reader asks, and the first page is the README."""
    sections = build_docs.sections()
    assert [section.title for section in sections] == QUESTIONS
    assert sections[0].pages[0] == build_docs.FIRST
    listed = [page for section in sections for page in section.pages]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/rules.md#thresholds", "rules.md#thresholds"),
        ("docs/rules.md", "../README.md", "index.md"),
        ("docs/rules.md", "runbooks/README.md", "runbooks/index.md"),
        ("docs/runbooks/README.md", "../rules.md#list", "../rules.md#list"),
        ("docs/board.md", "images/board.png", "images/board.png"),
        ("README.md", "docs/images/pool.png", "images/pool.png"),
        ("docs/rules.md", "../config/exporter.yaml", f"{build_docs.HOME}/blob/main/config/exporter.yaml"),
        ("docs/rules.md", "../config", f"{build_docs.HOME}/tree/main/config"),
        ("README.md", f"{build_docs.HOME}/blob/main/docs/rules.md", "rules.md"),
        ("README.md", "#install", "#install"),
        ("README.md", "https://prometheus.io/", "https://prometheus.io/"),
    ],
)
def test_links_of_the_forge_become_links_of_the_site(page: str, link: str, expected: str) -> None:
    """A link to a page stays on the site; one to another file of the repository leads to the forge."""
    names = {one: build_docs.name(one) for one in build_docs.pages()}
    assert expected == build_docs.relocate(link, PurePosixPath(page), names.get)


def test_a_link_to_nothing_fails() -> None:
    """A link to a file that does not exist fails the build, and is not sent to the forge."""
    with pytest.raises(FileNotFoundError, match="gone"):
        build_docs.relocate("../gone.yaml", PurePosixPath("docs/rules.md"), lambda _: None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx's own
def test_a_dead_anchor_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The strict build fails on a link to a heading that a page does not have."""
    pytest.importorskip("sphinx")
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# First\n\n[dead](docs/README.md#nothing-here)\n")
    (tmp_path / "docs" / "README.md").write_text("# Docs\n\n## Start\n\n* [First](../README.md)\n")
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    assert build_docs.build(tmp_path / "site") == 1


def test_every_link_of_the_site_has_a_target(site: Path, pages: dict[Path, Html]) -> None:
    """Each internal link of each built page leads to a file, and to an anchor in it."""
    dead, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors | {""} if target in pages else {""}
            if not target.is_file() or (parts.fragment not in known):
                dead.append((path.relative_to(site), link))
    assert [] == dead
    assert checked > 1000


def test_external_links_are_well_formed(pages: dict[Path, Html]) -> None:
    """A link to elsewhere is a URL of https, or of this machine, or an address; nobody is asked whether it answers."""
    strange = set()
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if not parts.scheme or parts.scheme == "mailto":
                continue
            local = parts.hostname in {"localhost", "127.0.0.1"}
            known_host = re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.hostname or "")
            if not (local or (parts.scheme == "https" and known_host)) or re.search(r"\s", link):
                strange.add(link)
    assert set() == strange


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Html]) -> None:
    """Scripts, styles and pictures are the site's own; only the README's badge comes from elsewhere."""
    foreign = {source for page in pages.values() for source in page.loaded if urlsplit(source).netloc}
    assert {urlsplit(source).netloc for source in foreign} <= {"img.shields.io"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the name of the base class


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the site on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.requires("chromium")
def test_the_search_finds_a_page(address: str) -> None:
    """A reader who looks for a word gets the page that is about it, in a real browser, without another server."""
    pytest.importorskip("playwright")
    from tests.support.browser import chromium, opened  # noqa: PLC0415 - needs Playwright

    with chromium() as browsers, opened(browsers.get(), f"{address}/search.html?q=gunicorn+preload") as page:
        page.wait_for_selector("ul.search li a")
        found = page.locator("ul.search li a").all_inner_texts()
    assert "Deployment" in found
    assert len(found) < len(build_docs.pages())
