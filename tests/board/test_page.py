# SPDX-License-Identifier: Apache-2.0
"""The page without its script: what it says, that all is escaped, and what a browser may do with it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.board.answers import FILES, answer, file
from sqlalchemy_pool_exporter.board.markup import joined, tag
from sqlalchemy_pool_exporter.board.page import Link
from sqlalchemy_pool_exporter.held_connections import Session
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.page import HOLDERS, LABELS
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW

if TYPE_CHECKING:
    from tests.support.boards import Directory

VOID = {"input", "link", "meta"}


class Parsed(HTMLParser):
    """A page: its elements with their attributes, its text, and what was not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def page(directory: Directory, query: str = "", after: float = 0.0) -> Parsed:
    directory.passed += after
    links = (Link("metrics", "Metrics", "for Prometheus"),)
    found = Parsed(answer("/", query, directory.moments.get(), links).body.decode())
    assert ([], []) == (found.faults, found.open)
    return found


def test_who_holds_what(directory: Directory) -> None:
    """The page says what is wrong, and for each connection who holds it since when, and what its server says."""
    process = directory.process()
    process.storage.pages.write_texts(HOLDERS, ["worker-1"])
    process.storage.pages.write_texts(LABELS, ["GET /pay"])
    process.hold(NOW - 42, 0, site="app:pay:88", holder=1, label=1, server_pid=41)
    process.hold(NOW - 5, 1, site="app:list:3", holder=-7, waits_since=NOW - 2, server_pid=42)
    process.hold(NOW - 4, 2, server_pid=43)
    process.wait(NOW - 2)
    directory.servers = (
        Probed(
            {
                41: Session("waiting_for_lock", "Lock:tuple", 3.0, 41.5, 3.0, "app", "", (42, 99, 0)),
                42: Session("idle_in_transaction", "", 4.0, 5.0, 4.0, "app", "", ()),
            }
        ),
    )
    text = page(directory).text
    assert "critical orders : stuck: worker 000" in text
    assert "42 s app:pay:88 orders worker-1 GET /pay" in text
    assert "waiting for lock for 3.0 s (Lock:tuple); session 41; blocked by app:list:3 in 000 pid" in text
    assert "session 42, idle in transaction; blocked by session 99, unknown; blocked by a prepared" in text
    assert "5.0 s app:list:3 orders Task-7 waits 2.0 s for another one" in text
    assert "4.0 s other orders unknown" in text
    assert "session 43" in text


def test_not_disposed_of(directory: Directory) -> None:
    """A pool shows how many of its name ended with connections open, and nothing of it while there is none."""
    process = directory.process()
    assert "Not disposed of" not in page(directory).text
    process.block[layout.UNDISPOSED_POOLS] = 2.0
    process.block[layout.UNDISPOSED_POOLS + 1] = 1.0
    found = page(directory, after=6.0)
    assert "Not disposed of 3 so far" in found.text
    assert "warning orders : not disposed of: 0.5/s engines end with connections open" in found.text


def test_pools(directory: Directory) -> None:
    """Each pool and process has its limits, a bar with a text that says the same, ages and rates."""
    process = directory.process()
    process.block[layout.TIMEOUT], process.block[layout.RECYCLE] = 30.0, 1800.0
    process.count(10)
    process.hold(NOW - 9, 0)
    process.hold(NOW - 8, 1)
    process.hold(NOW - 7, 2)
    process.wait(NOW - 2)
    assert "Checkouts 10 so far" in page(directory).text
    process.count(10)
    found = page(directory, after=5.0)
    assert (
        "QueuePool on postgresql+psycopg; size 2 + 1 overflow, timeout 30 s, recycled after 30 min, no pre-ping"
        in found.text
    )
    assert "Checkouts 2/s Mean wait 250 ms" in found.text
    drawings = [one["aria-label"] for one in found.all("svg") if one.get("role") == "img"]
    assert ["3 of 3 in use (1 beyond size), 0 idle; 1 caller waits"] * 2 == drawings
    bar = found.all("rect")[-3:]
    assert [("in-use", "0.0", "500.0"), ("overflow", "500.0", "250.0"), ("waits", "750.0", "250.0")] == [
        (one["class"], one["x"], one["width"]) for one in bar
    ]


def test_held_by(directory: Directory) -> None:
    """A pool names the places that hold most of it, with the age of the oldest of each."""
    process = directory.process(size=10.0)
    sites = ["app:b:2", "app:a:1", "app:a:1", "app:c:3", "app:d:4", "app:e:5"]
    for row, site in enumerate(sites):
        process.hold(NOW - 10 + row, row, site=site)
    text = page(directory).text
    assert (
        "Held by app:a:1 2 (oldest 9.0 s), app:b:2 1 (oldest 10 s), app:c:3 1 (oldest 7.0 s), 2 more places"
        in text
    )


@pytest.mark.parametrize(
    ("size", "overflow", "words"),
    [
        (float("nan"), float("nan"), "no limit"),
        (5.0, float("nan"), "size 5, unlimited overflow"),
    ],
)
def test_unlimited(directory: Directory, size: float, overflow: float, words: str) -> None:
    """A pool without a limit says so, and its bar has no room that is free."""
    directory.process(size=size, max_overflow=overflow).hold(NOW - 1)
    found = page(directory)
    assert words in found.text
    assert "1 in use, 0 idle" in found.text
    assert "in-use" == found.all("rect")[-1]["class"]


def test_a_pool_of_nobody(directory: Directory) -> None:
    """A pool that no live process has is shown as such."""
    directory.process().kill()
    found = page(directory)
    assert "no live process has it" in found.text
    assert "free" == found.all("rect")[-1]["class"]


def test_one_pool(directory: Directory) -> None:
    """A link leads to one pool, with the places that check its connections out."""
    process = directory.process()
    process.hold(NOW - 42, 0, site="app:pay:88")
    entry = process.storage.site("app:rare:1")
    assert entry is not None
    for at, count in enumerate((5.0, 4.0, 2.0, 1.0)):
        entry.table[entry.at + at] = count
    directory.process("billing")
    assert {"href": "?pool=orders"} in page(directory).all("a")
    found = page(directory, "pool=orders")
    assert "billing" not in found.text
    assert "app:pay:88 1 42 s 0 0 s 0" in found.text
    assert "app:rare:1 0 0 s 5 500 ms 1" in found.text
    assert "Show all pools" in found.text


def test_filter(directory: Directory) -> None:
    """The form filters without the script; links to more keep the filter."""
    for name in ("orders", "billing"):
        for _ in range(2):
            directory.process(name).hold(NOW - 1, site=f"app:{name}:1")
    found = page(directory, "q=BILL&workers=1&held=1&pools=0")
    assert "BILL" == found.all("input")[0]["value"]
    assert "No pool has that." in found.text
    assert {"href": "?q=BILL&pools=10&workers=1&held=1"} in found.all("a")
    found = page(directory, "q=BILL&workers=1&held=1")
    assert "app:billing:1" in found.text
    assert "orders" not in found.text
    assert {"href": "?pool=billing&q=BILL&workers=10&held=1"} in found.all("a")
    assert {"href": "?q=BILL&workers=1&held=10"} in found.all("a")
    assert "1 more process" in found.text


def test_many(directory: Directory) -> None:
    """Of many conditions the worst are shown, and the others are counted."""
    for at in range(23):
        directory.process(f"pool-{at}", size=0.0).hold(NOW - 1)
    found = page(directory)
    assert 20 == found.text.count("full: the only connection of worker")
    assert "3 more, of other pools" in found.text
    assert "3 more pools" in found.text


def test_nothing(directory: Directory) -> None:
    """Without pools the page says so, and nothing is wrong."""
    text = page(directory).text
    assert "What is wrong now Nothing." in text
    assert "No pools." in text
    assert "Nothing is checked out." in text


HOSTILE = "<script>alert(1)</script>"


def test_everything_is_escaped(directory: Directory) -> None:
    """Names, sites, labels and a filter that look like HTML are shown as they are."""
    site = '"><img src=x onerror=alert(2)>'
    process = directory.process(HOSTILE, info=dict.fromkeys(("pool_class", "dialect", "driver"), "<i>"))
    process.storage.pages.write_texts(HOLDERS, ["<b>t</b>"])
    process.storage.pages.write_texts(LABELS, ["<u>l</u>"])
    process.hold(NOW - 90, 0, site=site, holder=1, label=1, server_pid=41)
    directory.servers = (
        Probed({41: Session("active", "<s>", 1.0, 1.0, 1.0, "<a>", "SELECT '<q>'", ())}, pools=(HOSTILE,)),
    )
    for query in ("", "pool=%3Cscript%3Ealert(1)%3C/script%3E"):
        found = page(directory, query)
        assert {"board.js"} == {
            (one["src"] or "").partition("/")[2].partition("?")[0] for one in found.all("script")
        }
        assert not {"img", "b", "u", "i", "s", "q"} & {name for name, _ in found.elements}
        for text in (HOSTILE, site, "<b>t</b>", "<u>l</u>", "<s>", "SELECT '<q>'", "<i>"):
            assert text in found.text
        assert {"href": "?pool=%3Cscript%3Ealert%281%29%3C%2Fscript%3E"} in found.all("a")
    found = page(directory, 'q="><script>x</script>')
    assert '"><script>x</script>' == found.all("input")[0]["value"]
    assert 1 == len(found.all("script"))


def test_no_inline_code(directory: Directory) -> None:
    """The policy allows only the endpoint's own files, and the page has no script, style or handler in itself."""
    directory.process().hold(NOW - 90)
    got = answer("/", "", directory.moments.get())
    assert {
        "default-src 'none'",
        "base-uri 'none'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "img-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
    } == set(got.headers["Content-Security-Policy"].split("; "))
    assert ("no-store", "nosniff", "no-referrer") == (
        got.headers["Cache-Control"],
        got.headers["X-Content-Type-Options"],
        got.headers["Referrer-Policy"],
    )
    found = page(directory)
    assert [] == found.all("style")
    for name, attributes in found.elements:
        assert not [key for key in attributes if key == "style" or key.startswith("on")], name


def test_outline(directory: Directory) -> None:
    """The page has landmarks, headings without a gap, labelled sections, and tables with captions and headers."""
    directory.process().hold(NOW - 90)
    found = page(directory)
    names = [name for name, _ in found.elements]
    assert {"header", "main", "nav", "footer"} <= set(names)
    assert {"lang": "en"} == found.all("html")[0]
    levels = [int(name[1]) for name in names if re.fullmatch(r"h\d", name)]
    assert 1 == levels[0]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert sorted(set(filter(None, ids))) == sorted(filter(None, ids))
    assert {one["aria-labelledby"] for one in found.all("section")} <= set(ids)
    assert {"q"} == {one["for"] for one in found.all("label")}
    assert len(found.all("table")) == len(found.all("caption")) == 2
    assert {"col", "row"} == {one["scope"] for one in found.all("th")}
    # The style makes them blocks on a narrow screen, which some browsers take for no table.
    assert {
        ("table", "table"),
        ("tr", "row"),
        ("td", "cell"),
        ("th", "rowheader"),
        ("th", "columnheader"),
    } == {
        (name, attributes["role"])
        for name, attributes in found.elements
        if name in {"table", "tr", "td", "th"}
    }
    assert [{"id": "news", "class": "unseen", "role": "status"}] == [
        one for one in found.all("p") if one.get("id") == "news"
    ]


@pytest.mark.parametrize("path", FILES)
def test_files(path: str) -> None:
    """The files may be kept for ever, because their path in the page changes with their content."""
    got = file(path)
    assert "private, max-age=31536000, immutable" == got.headers["Cache-Control"]
    assert "nosniff" == got.headers["X-Content-Type-Options"]
    assert b"SPDX-License-Identifier" in got.body or path.endswith(".svg")


def test_the_page_names_its_files(directory: Directory) -> None:
    """All files of the page are relative to it, so it works behind a proxy that adds a prefix."""
    found = page(directory)
    named = {
        (one.get("href") or one.get("src") or "") for name in ("link", "script") for one in found.all(name)
    }
    assert set(FILES) == {"/" + name.partition("?")[0] for name in named}
    hrefs = [one["href"] or "" for one in found.all("a")]
    assert {"metrics", "api/v1/pools"} <= set(hrefs)
    assert [] == [href for href in hrefs if href.startswith(("/", "http"))]


def test_elements() -> None:
    """Text is escaped, elements are not; attributes are quoted, and characters that no HTML can have are replaced."""
    assert '<a title="&quot;&lt;" hidden>&lt;<b>x</b>&amp;y</a>' == tag(
        "a", "<", [tag("b", "x"), "&y"], None, title='"<', hidden=True, style=None, class_=False
    )
    assert "a\ufffdb\ufffd\ufffdc" == joined("a\x00b\ud800\u202ec")
