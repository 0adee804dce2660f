# SPDX-License-Identifier: Apache-2.0
"""Write docs/images/board.png: ``python -m tools.board_picture``, the board during the starvation scene of the demo."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from tests.support.browser import chromium, opened
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "board.png"
POOL = "orders"  # the one that is shown, so that there is room for who holds its connections
WIDTH, HEIGHT = 1000, 1280
MOST_HELD = 8  # rows at least
SECONDS = 60  # of the demo: enough for a look at the second of its five scenes


def main() -> None:
    """Play the demo, and take a picture of its board."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/"
    with _demo(port), chromium() as browsers:
        if not eventually(lambda: _is_starving(url), seconds=SECONDS):
            sys.exit("no pool was seen starving")
        size = {"width": WIDTH, "height": HEIGHT}
        with opened(browsers.get(), f"{url}?q={POOL}", viewport=size, color_scheme="light") as page:
            page.locator(".holders tbody tr").nth(MOST_HELD).wait_for(timeout=1000.0 * SECONDS)
            page.get_by_text("callers wait, the first for").first.wait_for(timeout=1000.0 * SECONDS)
            page.screenshot(path=IMAGE)
    print(f"{IMAGE.name} {IMAGE.stat().st_size // 1000} kB")


@contextmanager
def _demo(port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "demo", "--port", str(port), "--duration", str(SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _is_starving(url: str) -> bool:
    """Return whether callers wait for a pool, and others of its callers have failed."""
    return any(
        pool["state"]["waiting"] and any(one["kind"] == "timeouts" for one in pool["conditions"])
        for pool in _pools(url)
    )


def _pools(url: str) -> Iterator[Any]:
    try:
        with urlopen(f"{url}api/v1/pools", timeout=10) as answer:  # noqa: S310 - of the demo
            yield from json.load(answer)["pools"]
    except OSError:
        return  # the demo is starting


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
