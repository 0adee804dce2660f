# SPDX-License-Identifier: Apache-2.0
"""Builds the documentation site: ``python -m tools.build_docs DIRECTORY``.

The pages are written for the forge, which shows them where they are: links are relative, docs/README.md is the
navigation. Sphinx needs another tree, in which README.md is the first page and nothing is linked that is no page. So
the pages are copied into such a tree, and their links are changed on the way.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
HOME: Final = "https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter"
FIRST, NAVIGATION = PurePosixPath("README.md"), PurePosixPath("docs/README.md")

# Everything the pages load is the site's own: Furo has no fonts of others, and the search is Sphinx's own.
SETTINGS: Final[dict[str, Any]] = {
    "project": "sqlalchemy-pool-exporter",
    "author": "The sqlalchemy-pool-exporter authors",
    "copyright": "The sqlalchemy-pool-exporter authors",
    "root_doc": "index",
    "extensions": ["myst_parser"],
    "myst_heading_anchors": 6,
    "html_theme": "furo",
    "html_title": "sqlalchemy-pool-exporter",
    "html_favicon": str(ROOT / "exporter/sqlalchemy_pool_exporter/board/assets/icon.svg"),
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_sphinx": False,
    # Examples have … where the reader's own text belongs. No lexer takes that, and the block is shown without colours.
    "suppress_warnings": ["misc.highlighting_failure"],
}

_FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$\n?", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ENTRY = re.compile(r"^\* \[[^\]]+\]\(([^)\s#]+\.md)\)", re.MULTILINE)


class Section(NamedTuple):
    """A part of the navigation: its heading, and the pages below it as paths from the repository's root."""

    title: str
    pages: list[PurePosixPath]


def sections() -> list[Section]:
    """Return the navigation: the headings of docs/README.md and the pages of their lists."""
    text = (ROOT / NAVIGATION).read_text("utf-8")
    found = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, below = part.partition("\n")
        found.append(Section(title, [_resolved(NAVIGATION, link) for link in _ENTRY.findall(below)]))
    return found


def children(page: PurePosixPath) -> list[PurePosixPath]:
    """Return the pages beside an index (a README.md below docs) that it links to, in its order."""
    if page.name != "README.md" or "docs" not in page.parts or page == NAVIGATION:
        return []
    prose = _FENCE.sub("", (ROOT / page).read_text("utf-8"))
    linked = (_resolved(page, match[2].partition("#")[0]) for match in _LINK.finditer(prose))
    beside = [one for one in linked if one.suffix == ".md" and one.parent == page.parent and one != page]
    return list(dict.fromkeys(beside))


def pages() -> list[PurePosixPath]:
    """Return all pages of the site."""
    listed = [page for section in sections() for page in section.pages]
    return list(
        dict.fromkeys([FIRST, NAVIGATION, *listed, *(child for page in listed for child in children(page))])
    )


def name(page: PurePosixPath) -> str:
    """Return what the site calls a page: its path without the suffix."""
    if page in {FIRST, NAVIGATION}:
        return "index" if page == FIRST else "contents"
    if page.parts[0] == "docs":
        inner = page.relative_to("docs")
        return str(inner.with_name("index") if inner.name == "README.md" else inner.with_suffix(""))
    return str(page.parent) if page.name == "README.md" else page.stem.lower()


def relocate(link: str, page: PurePosixPath, site: Callable[[PurePosixPath], str | None]) -> str:
    """Return what a link of a page is on the site: to another page of it, an image, or a file on the forge.

    ``site`` returns what the site calls a page, and None for what is no page of it.
    """
    own = re.match(rf"{re.escape(HOME)}/(?:blob|tree)/main/(.*)", link)
    if link.startswith("#") or (re.match(r"\w+:", link) and not own):
        return link
    path, hash_sign, anchor = (own[1] if own else link).partition("#")
    target = PurePosixPath(path) if own else _resolved(page, path)
    folder = PurePosixPath(site(page) or "").parent
    if there := site(target):
        return os.path.relpath(f"{there}.md", folder) + hash_sign + anchor
    if target.is_relative_to("docs/images"):
        return os.path.relpath(target.relative_to("docs"), folder)
    if not (ROOT / target).exists():
        raise FileNotFoundError(f"{page} links to {link}, which does not exist")
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{HOME}/{kind}/main/{target}{hash_sign}{anchor}"


def stage(tree: Path) -> None:
    """Write the pages into a tree as Sphinx needs them."""
    names = {page: name(page) for page in pages()}
    if len(set(names.values())) != len(names):
        raise ValueError(f"two pages have one name: {sorted(names.values())}")
    for page, called in names.items():
        text = _with_links((ROOT / page).read_text("utf-8"), partial(relocate, page=page, site=names.get))
        text += "".join(_toctrees(page, names))
        path = tree / f"{called}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    shutil.copytree(ROOT / "docs" / "images", tree / "images")


def build(site: Path) -> int:
    """Build the site into a directory that is new or empty; return 0, or 1 after any warning of Sphinx."""
    from sphinx.application import Sphinx  # noqa: PLC0415 - the tests of the links need no Sphinx

    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        stage(tree)
        application = Sphinx(
            tree,
            None,
            site,
            Path(directory) / "doctrees",
            "html",
            confoverrides=SETTINGS,
            status=None,
            warning=sys.stderr,
            freshenv=True,
            warningiserror=True,
        )
        application.build()
    return application.statuscode


def _resolved(page: PurePosixPath, link: str) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(page.parent / link))


def _with_links(text: str, change: Callable[[str], str]) -> str:
    """Return a text with its links changed, but not what looks like one in a fenced block."""
    changed, done = [], 0
    for fence in [*_FENCE.finditer(text), None]:
        prose = text[done : fence.start() if fence else None]
        changed.append(_LINK.sub(lambda match: match[1] + change(match[2]) + match[3], prose))
        if fence:
            changed.append(fence[0])
            done = fence.end()
    return "".join(changed)


def _toctrees(page: PurePosixPath, names: dict[PurePosixPath, str]) -> Iterator[str]:
    if page == FIRST:
        for number, section in enumerate(sections()):
            first = [names[NAVIGATION]] if number == 0 else []
            yield _toctree(section.title, [*first, *(names[one] for one in section.pages if one != FIRST)])
    elif below := children(page):
        yield _toctree("", [names[child] for child in below])


def _toctree(title: str, called: list[str]) -> str:
    caption = f":caption: {title}\n" if title else ""
    return "\n```{toctree}\n:hidden:\n" + caption + "\n" + "\n".join(f"/{one}" for one in called) + "\n```\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("site", type=Path, help="directory of the site; it is replaced")
    site = parser.parse_args().site.resolve()
    shutil.rmtree(site, ignore_errors=True)
    status = build(site)
    print(f"{site / 'index.html'}: {len(pages())} pages")
    return status


if __name__ == "__main__":
    sys.exit(main())
