# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium, and what a page in it complains of."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

# Chromium's sandbox refuses to run as root, as in a container.
_ARGUMENTS = ["--no-sandbox"] if os.geteuid() == 0 else []
_VIOLATIONS = (
    "addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.blockedURI}`))"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, *, faultless: bool = True, **options: Any) -> Iterator[Page]:
    """Open a page in a profile of its own, and assert at the end that the browser complained of nothing.

    Args:
        browser: the browser.
        url: of the page.
        faultless: False if the test makes the browser complain.
        options: of the profile, such as ``color_scheme``.
    """
    context = browser.new_context(**options)
    try:
        context.add_init_script(_VIOLATIONS)
        page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(url)
        yield page
        assert [] == faults or not faultless
    finally:
        context.close()
