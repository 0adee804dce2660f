# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: live, within its policy, light and dark, on a phone, by keyboard, and without JavaScript."""

from __future__ import annotations

import re
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from playwright.sync_api import Error, expect
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import serve
from sqlalchemy_pool_exporter.segment import block as layout
from tests.support.browser import Browsers, chromium, limited, opened
from tests.support.ports import free_port
from tests.support.segments import new_block, processes
from tests.support.sidecar import Sidecar
from tests.support.web_files import PASSWORD, hashed, users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Route

    from tests.support.segments import Process

pytestmark = [pytest.mark.newest, pytest.mark.requires("chromium")]

# Playwright waits five seconds unless told: a busy machine takes that long for an update of the page.
EXPECTED_SECONDS = 60.0
PHONE = {"width": 360, "height": 740}
HOSTILE = "<script>alert(1)</script>"
# Returns the lowest contrast of a text with the colour behind it, as WCAG defines it, and that text.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => {
      const part = one / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [100, ""];
  for (const element of document.body.querySelectorAll("*")) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    if (!texts.length || !element.checkVisibility()) continue;
    const [one, other] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < worst[0]) worst = [contrast, texts[0].data];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browsers() -> Iterator[Browsers]:
    """Use one browser for the module: while it runs, no other event loop can run in this thread."""
    expect.set_options(timeout=EXPECTED_SECONDS * 1000)
    with chromium() as started:
        yield started


@pytest.fixture
def browser(browsers: Browsers) -> Browser:
    """Return the browser, or the next one if it was killed."""
    return browsers.get()


@pytest.mark.soak
def test_a_browser_that_hangs(browsers: Browsers, url: str) -> None:
    """A test whose browser hangs fails in time, and the next one gets another browser."""
    with pytest.raises(Error), opened(browsers.get(), url) as page, limited(1.0):
        page.evaluate("while (true) {}")
    with opened(browsers.get(), url) as page:
        expect(page.locator("#state")).to_have_text("Live")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that makes processes, which are killed at the end."""
    with processes(tmp_path) as make:
        yield make


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Serve the directory; return the URL of the page."""
    with serve(0, "127.0.0.1", registry=CollectorRegistry(), directory=tmp_path) as server:
        yield server.url.removesuffix("metrics")


def hold(process: Process, seconds: float, row: int = 0, site: str = "app.orders:pay:88") -> None:
    process.hold(time.monotonic() - seconds, row, site=site)


def full(process: Process) -> None:
    """Let all connections of a pool be held, and a caller wait."""
    for row in range(3):
        hold(process, 50.0 - row, row)
    process.block[layout.LAST_CHECKIN] = time.monotonic() - 45.0
    process.wait(time.monotonic() - 40.0)


@contextmanager
def shown(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    with opened(browser, url, **options) as page:
        expect(page.locator("#state")).to_have_text("Live")
        yield page


def test_live(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """Without a reload the page shows what changed, and tells a screen reader of what is wrong, and of that alone."""
    orders = process()
    with shown(browser, url) as page:
        page.evaluate("window.stays = true")
        expect(page.locator("#held")).to_be_visible()
        expect(page.get_by_text("Nothing is checked out.")).to_be_visible()
        hold(orders, 0.0)
        expect(page.get_by_role("rowheader", name=re.compile("ms|s$")).last).to_be_visible()
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()
        expect(page.locator("#news")).to_have_text("")
        full(orders)
        expect(page.get_by_text("stuck: worker 000").first).to_be_visible()
        expect(page.locator("#news")).to_contain_text("orders: stuck: worker 000")
        expect(
            page.get_by_role("img", name="3 of 3 in use (1 beyond size), 0 idle; 1 caller waits")
        ).to_have_count(2)
        orders.count(100)
        expect(page.get_by_text(re.compile(r"Checkouts.*\d/s")).first).to_be_visible()
        assert page.evaluate("window.stays") is True


def test_outline(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """Landmarks, headings, tables and bars have the roles and names that a screen reader announces."""
    full(process())
    with shown(browser, url) as page:
        landmarks: list[Any] = ["banner", "main", "search", "contentinfo", "status"]
        for role in landmarks:
            assert 1 == page.get_by_role(role).count(), role
        assert 1 == page.get_by_role("navigation", name="Endpoints").count()
        for name in ("All pools", "What is wrong now", "Pools, the worst first", "Who holds what"):
            assert 1 == page.get_by_role("region", name=name, exact=True).count(), name
        table = page.get_by_role("table", name="Connections that are checked out, the oldest first")
        assert [
            "Held for",
            "Where",
            "Pool",
            "Task or thread",
            "Process",
            "Database server",
        ] == table.get_by_role("columnheader").all_inner_texts()
        assert 3 == table.get_by_role("rowheader").count()
        assert 1 == page.get_by_role("searchbox", name="Filter /").count()


def test_policy_is_enforced(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """A script in the page itself would not run."""
    process()
    with opened(browser, url, faultless=False) as page:
        page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.ran = true";
              document.body.append(script);
            }"""
        )
        assert page.evaluate("window.ran") is None


def test_hostile_names(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """A pool and a site that look like HTML are shown as text, also after an update by the script."""
    hostile = process(HOSTILE)
    hold(hostile, 100.0, site='"><img src=x onerror=alert(2)>')
    with shown(browser, url) as page:
        hold(hostile, 99.0, 1, site="after:the:update")
        expect(page.get_by_role("cell", name="after:the:update")).to_be_visible()
        expect(page.get_by_role("cell", name='"><img src=x onerror=alert(2)>')).to_be_visible()
        page.get_by_role("link", name=HOSTILE).first.click()
        expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
        expect(page.get_by_role("link", name="Show all pools")).to_be_visible()
        assert 0 == page.locator("img").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(browser: Browser, url: str, process: Callable[..., Process], scheme: str) -> None:
    """In both schemes every text has the contrast that WCAG asks for (AA), and the dark one is dark."""
    full(process())
    hold(process("billing"), 100.0)
    hold(process("full", size=0.0, max_overflow=1.0), 1.0)
    with shown(browser, url, color_scheme=scheme) as page:
        for severity in ("critical", "warning", "info"):
            assert page.locator(f".badge.{severity}").count(), severity
        contrast, text = page.evaluate(CONTRAST)
        assert contrast >= 4.5, text
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(16, 19, 24)") == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow(browser: Browser, url: str, process: Callable[..., Process], width: int) -> None:
    """On a phone nothing is wider than the screen, however long a name is, and each value has its name beside it."""
    long = process("a_very_long_name_of_a_pool_without_any_space_in_it_" * 3)
    full(long)
    hold(long, 30.0, site="package.module.with.a.long.path_" * 4 + ":function_with_a_long_name:1234")
    with shown(browser, url, viewport={**PHONE, "width": width}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        label = page.evaluate("getComputedStyle(document.querySelector('.holders td'), '::before').content")
        assert (label == "none") == (width > 736)
        assert 1 == page.get_by_role("table", name="Connections that are checked out").count()


def test_filter_by_keyboard(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """A slash focuses the filter, typing filters at once and keeps it in the address, Escape empties it."""
    hold(process("orders"), 1.0)
    hold(process("billing"), 1.0, site="app.billing:run:7")
    with shown(browser, url) as page:
        page.keyboard.press("/")
        page.keyboard.type("BILLING:run")
        expect(page.get_by_role("heading", name="orders")).to_have_count(0)
        expect(page.get_by_role("heading", name="billing")).to_be_visible()
        expect(page).to_have_url(f"{url}?q=BILLING%3Arun")  # the page waits until nobody types
        page.reload()
        expect(page.locator("#q")).to_have_value("BILLING:run")
        expect(page.get_by_role("heading", name="orders")).to_have_count(0)
        page.locator("#q").focus()
        page.keyboard.press("Escape")
        expect(page.get_by_role("heading", name="orders")).to_be_visible()
        expect(page).to_have_url(url)


def test_focus_stays(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """All is reached with the tabulator, what has the focus is seen, and an update does not take the focus away."""
    orders = process()
    full(orders)
    with shown(browser, url) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the pools")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        focused = page.locator("#board a:focus")
        expect(focused).to_have_text("orders")
        assert "none" != focused.evaluate("(link) => getComputedStyle(link).outlineStyle")
        page.evaluate("document.activeElement.dataset.old = true")
        expect(page.locator("[data-old]")).to_have_count(0)
        expect(page.locator("#board a:focus")).to_have_text("orders")


def test_pause(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """Paused, the page stays as it is until it goes on; a filter is applied all the same."""
    orders = process()
    process("billing")
    with shown(browser, url) as page:
        pause = page.get_by_role("button", name="Pause")
        pause.click()
        expect(page.locator("#state")).to_have_text("Paused")
        expect(pause).to_have_attribute("aria-pressed", "true")
        hold(orders, 0.0)
        page.wait_for_timeout(2500)
        expect(page.get_by_text("Nothing is checked out.")).to_be_visible()
        page.locator("#q").fill("orders")
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()
        expect(page.locator("#state")).to_have_text("Paused")
        pause.click()
        expect(page.locator("#state")).to_have_text("Live")


def test_an_update_on_its_way(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """An answer that arrives when the page is paused already is not shown; that to a filter is."""
    orders = process()
    with shown(browser, url) as page:
        asked: list[Route] = []

        def delay(route: Route) -> None:
            asked.append(route)

        page.route("**/*", delay)
        hold(orders, 0.0)
        while not asked:  # the browser is killed if that lasts
            page.wait_for_timeout(20)
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#state")).to_have_text("Paused")
        page.unroute("**/*", delay)
        for route in asked:
            with suppress(Error):  # the page waits for it no more
                route.continue_()
        page.wait_for_timeout(1000)
        expect(page.get_by_text("Nothing is checked out.")).to_be_visible()
        page.locator("#q").fill("orders")
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()


def test_an_endpoint_that_fails(browser: Browser, tmp_path: Path, process: Callable[..., Process]) -> None:
    """If the endpoint is gone, the page keeps what it shows and says since when it is not current; then it goes on."""
    hold(process(), 1.0)
    registry = CollectorRegistry()
    port = free_port()  # one that nobody gets by chance while nobody serves on it
    server = serve(port, "127.0.0.1", registry=registry, directory=tmp_path)
    url = server.url.removesuffix("metrics")
    with closing(server), opened(browser, url, faultless=False) as page:
        server.close()
        expect(page.locator("#state")).to_contain_text("Not current since")
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()
        with serve(port, "127.0.0.1", registry=registry, directory=tmp_path):
            expect(page.locator("#state")).to_have_text("Live")


def test_without_javascript(browser: Browser, url: str, process: Callable[..., Process]) -> None:
    """Without JavaScript the page has all of it, a form that filters, and a link to refresh."""
    full(process())
    orders = process("billing")
    with opened(browser, url, java_script_enabled=False) as page:
        assert page.get_by_text("stuck: worker 000").count()
        assert page.get_by_role("cell", name="app.orders:pay:88").count()
        assert not page.get_by_role("button", name="Pause").count()
        page.locator("#q").fill("billing")
        page.get_by_role("button", name="Filter").click()
        expect(page.get_by_role("heading", name="orders")).to_have_count(0)
        expect(page.get_by_text("Nothing is checked out.")).to_be_visible()  # the new page may still load
        hold(orders, 1.0)
        time.sleep(1.1)  # answers of the same second share what was read
        page.get_by_role("link", name="Refresh").click()
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()
        assert page.url.endswith("?q=billing")


def test_behind_a_password(browser: Browser, tmp_path: Path, process: Callable[..., Process]) -> None:
    """The sidecar's page is live behind its password."""
    orders = process()
    web = tmp_path / "web.yaml"
    web.write_text(yaml.safe_dump(users(ada=hashed())), "utf-8")
    credentials = {"username": "ada", "password": PASSWORD}
    with (
        Sidecar("--directory", tmp_path, "--web-config-file", web) as sidecar,
        shown(browser, f"{sidecar.url}/", http_credentials=credentials) as page,
    ):
        hold(orders, 1.0)
        expect(page.get_by_role("cell", name="app.orders:pay:88")).to_be_visible()


@pytest.mark.soak
def test_two_hundred_pools_of_64_processes(
    browser: Browser, url: str, process: Callable[..., Process]
) -> None:
    """A large fleet shows its worst pools and processes, counts the others, and every pool is found by the filter."""
    now = time.monotonic()
    for at in range(64):
        one = process("pool-0")
        blocks = [one.block, *(new_block(one.lease, f"pool-{number}").doubles for number in range(1, 200))]
        for number, block in enumerate(blocks):
            block[layout.ACTIVE] = layout.LIVE
            block[layout.SIZE], block[layout.MAX_OVERFLOW] = 5.0, 0.0
            block[layout.CONNECTIONS_USED] = 5.0
            for row in range(5 if number == 150 and at == 33 else 2):
                first = layout.CONNECTIONS_AT + layout.ROW * row
                block[first], block[first + layout.HELD_SINCE] = now - 20, now - 10
        blocks[150][layout.WAITERS_USED] = 1.0
        if at == 33:
            blocks[150][layout.WAITERS_AT] = now - 5
    with opened(browser, url) as page:
        page.set_default_timeout(60_000)
        expect(page.locator(".pool")).to_have_count(20)
        expect(page.locator(".pool").first).to_contain_text("pool-150")
        expect(page.locator(".pool").first.get_by_role("rowheader").first).to_contain_text("033")
        expect(page.get_by_role("link", name="180 more pools")).to_be_visible()
        expect(page.get_by_role("link", name="56 more processes").first).to_be_visible()
        assert page.evaluate("document.querySelectorAll('*').length") < 10_000
        page.locator("#q").fill("pool-199")
        expect(page.locator(".pool")).to_have_count(1)
        page.get_by_role("link", name="56 more processes").click()
        expect(page.locator(".processes tbody tr")).to_have_count(64)
