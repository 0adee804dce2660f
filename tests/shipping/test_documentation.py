# SPDX-License-Identifier: Apache-2.0
"""The files, headings and commands that the documentation refers to exist."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from tests.support.paths import ROOT
from tools import build_docs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest

HOME = build_docs.HOME
PAGES = [*ROOT.glob("*.md"), *(page for name in ("docs", "helm") for page in (ROOT / name).rglob("*.md"))]


def links(text: str) -> list[str]:
    """Return the link targets of a page; links to our repository on GitHub as paths from its root."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    own = re.compile(rf"{re.escape(HOME)}/(?:blob|tree)/main/")
    return [own.sub("/", link) for link in found]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes for a page's headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file or a heading of the repository has a target."""
    dead = []
    for link in links(page.read_text("utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / path[1:] if path.startswith("/") else page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            dead.append(link)
    assert [] == dead


def test_dead_links_are_found() -> None:
    """``links()`` and ``anchors()``, on which the test above relies, find links and headings."""
    assert ["a.md#b", "/docs/rules.md"] == links(f"[a](a.md#b) [c]({HOME}/blob/main/docs/rules.md)")
    assert {"a-b-c", "d"} == anchors("# A `b`: c\n```\n# no\n```\n## D")


def test_every_page_is_in_the_navigation() -> None:
    """docs/README.md leads to each page below docs, itself or by the index of its directory."""
    written = {PurePosixPath(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert set() == written - set(build_docs.pages())


def test_commands_exist() -> None:
    """Every make target that a page names exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for command in re.findall(r"`make ([a-z -]+?)[`A-Z]", page.read_text("utf-8"))
        for target in command.split()
    }
    assert {"test", "lint", "types", "dist"} <= named
    assert set() == named - targets - {"test-newest", "test-oldest"}


def test_every_generator_is_listed() -> None:
    """CONTRIBUTING.md lists the command that writes each generated file."""
    listed = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    generators = [
        path for name in ("tools", "dashboards/source") for path in (ROOT / name).glob("generate*.py")
    ]
    assert len(generators) >= 5
    for path in generators:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        command = "make chart" if module == "tools.generate_chart" else f"python -m {module}"
        assert f"`{command}`" in listed, module
