# SPDX-License-Identifier: Apache-2.0
"""Write docs/images from real runs: ``python -m tools.pictures``, which takes some minutes.

Pools on a real PostgreSQL are in trouble, are healthy, are gone, or are two hundred. A real Prometheus scrapes them.
Grafana's own front-end code draws what it answers. ``--seconds`` is for how long the healthy pools and the two hundred
run, ``--only`` a part of the names of the pictures to draw.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support import grafana, pg
from tests.support.board_run import SIDECAR
from tests.support.fleet_run import fleet, names

from .grafana.answers import Asking
from .grafana.build import built
from .grafana.page import Look, opened
from .grafana.stage import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from .grafana.answers import Chosen
    from .grafana.page import Grafana

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LABEL = "A run on a real Prometheus and PostgreSQL, drawn by make pictures with the front-end code of Grafana 13.2."
INCIDENT = 134.0  # seconds: two rounds of the scenes, and the third up to its checkout timeouts
LOST = 60.0  # seconds without targets
SECONDS = 180.0
SHADES = 96  # colours of a picture: no visible difference, at a third of the file size
DARK, LIGHT = Look("dark", 1440), Look("light", 1440)
DARK_PHONE, LIGHT_PHONE = Look("dark", 390), Look("light", 390)
ORDERS: Chosen = {"job": SIDECAR, "pool": ["orders", "reports"]}
STUCK = ("orders-03", "payments-11", "mail-20")
STEP = 3  # seconds between two scrapes of 200 pools
HEALTHY, MANY = "healthy", "200 pools"


class Picture(NamedTuple):
    """A picture: of which dashboard, at what time, how it looks, and what the variables are."""

    file: str
    board: str
    state: str
    look: Look = DARK
    chosen: Chosen = {}  # noqa: RUF012 - never changed


PICTURES = (
    Picture("overview", "overview", "incident"),
    Picture("pool", "pool", "incident", chosen=ORDERS),
    Picture("database", "database", "incident"),
    Picture("fleet", "fleet", "incident"),
    Picture("overview-phone", "overview", "incident", LIGHT_PHONE),
    Picture("overview-lost", "overview", "targets lost", LIGHT),
    Picture("database-never", "database", "never scraped"),
    Picture("overview-healthy", "overview", HEALTHY, LIGHT),
    Picture("overview-200", "overview", MANY),
    Picture("pool-200", "pool", MANY, LIGHT),
    Picture("overview-200-phone", "overview", MANY, DARK_PHONE),
    Picture("pool-healthy", "pool", HEALTHY, LIGHT, {"job": SIDECAR, "pool": "orders"}),
)


@contextmanager
def _trouble(directory: Path, _seconds: float) -> Iterator[Mapping[str, Asking]]:
    with staged(directory, INCIDENT, LOST) as stage:
        yield {"incident": stage.incident, **stage.blind}


@contextmanager
def _healthy(directory: Path, seconds: float) -> Iterator[Mapping[str, Asking]]:
    with pg.running() as server, fleet(server, directory, names(8), seconds) as run:
        yield {HEALTHY: Asking(prometheus=run.prometheus, start=run.start, end=run.end)}


@contextmanager
def _many(directory: Path, seconds: float) -> Iterator[Mapping[str, Asking]]:
    with (
        pg.running() as server,
        fleet(server, directory, names(200), seconds, stuck=STUCK, interval=STEP) as run,
    ):
        yield {
            MANY: Asking(
                prometheus=run.prometheus,
                start=run.start,
                end=run.end,
                step=STEP,
                rate_interval=f"{4 * STEP}s",
            )
        }


# What is staged, and the states that one can ask it of.
STAGES: Mapping[Callable[[Path, float], AbstractContextManager[Mapping[str, Asking]]], tuple[str, ...]] = {
    _trouble: ("incident", "targets lost", "never scraped"),
    _healthy: (HEALTHY,),
    _many: (MANY,),
}


def draw(page: Grafana, picture: Picture, asking: Asking) -> Path:
    """Draw a picture and return its file."""
    path = IMAGES / f"{picture.file}.png"
    board = grafana.load(picture.board)
    asked = replace(asking, chosen=picture.chosen)
    for fault in page.draw(picture.board, board, asked.answers(board), picture.look, path):
        print(f"  {fault}")
    with Image.open(path) as image:
        smaller = image.convert("RGB").quantize(SHADES)
    said = PngInfo()
    said.add_text("Description", LABEL)
    smaller.save(path, optimize=True, pnginfo=said)
    return path


def main() -> None:
    """Stage everything that a picture is drawn of, and draw it."""
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    wanted = [picture for picture in PICTURES if options.only in picture.file]
    with opened(built()) as page:
        for stage, states in STAGES.items():
            pictures = [picture for picture in wanted if picture.state in states]
            if not pictures:
                continue
            with TemporaryDirectory() as directory, stage(Path(directory), options.seconds) as askings:
                for picture in pictures:
                    path = draw(page, picture, askings[picture.state])
                    print(
                        f"{path.relative_to(IMAGES.parents[1])} {path.stat().st_size // 1000} kB", flush=True
                    )
    if not wanted:
        sys.exit(f"no picture has {options.only!r} in its name")


if __name__ == "__main__":
    main()
