# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium, and what a page in it complains of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Error, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Playwright

# A test may take this long, on a loaded machine too. Most calls of Playwright have a limit of their own, but neither
# evaluate() nor any close() has one, and a browser can hang.
SECONDS = 240.0
# Chromium's sandbox refuses to run as root, as in a container. What draws without a graphics card is a process more.
_ARGUMENTS = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
_VIOLATIONS = (
    "addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.blockedURI}`))"
)


class Browsers:
    """A browser at a time: the next one if the last one was killed, because a test hung. Mutable state: the browser."""

    def __init__(self, playwright: Playwright) -> None:
        self._playwright = playwright
        self._browser: Browser | None = None

    def get(self) -> Browser:
        """Return the browser."""
        if self._browser is None or not self._browser.is_connected():
            with limited():
                self._browser = self._playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=_ARGUMENTS
                )
        return self._browser

    def close(self) -> None:
        """End the browser."""
        if self._browser is not None:
            with limited(), contextlib.suppress(Error):
                self._browser.close()


@contextmanager
def chromium() -> Iterator[Browsers]:
    """Let browsers be started."""
    with sync_playwright() as playwright:
        browsers = Browsers(playwright)
        try:
            yield browsers
        finally:
            browsers.close()


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Kill the browser if what is done with it takes longer: the call of Playwright that waits for it then raises."""
    timer = threading.Timer(seconds, _kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill() -> None:
    """Kill each Chromium that is a descendant of this process."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                names[int(entry.name)], parents[int(entry.name)] = name, int(rest.split()[1])
    for pid, name in names.items():
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid() and name.startswith("chrom"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def opened(browser: Browser, url: str, *, faultless: bool = True, **options: Any) -> Iterator[Page]:
    """Open a page in a profile of its own, and assert at the end that the browser complained of nothing.

    Args:
        browser: the browser.
        url: of the page.
        faultless: False if the test makes the browser complain.
        options: of the profile, such as ``color_scheme``.
    """
    with limited(), contextlib.closing(browser.new_context(**options)) as context:
        context.add_init_script(_VIOLATIONS)
        page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(url)
        yield page
        assert [] == faults or not faultless
