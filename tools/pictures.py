# SPDX-License-Identifier: Apache-2.0
"""Write docs/images from a real run: ``python -m tools.pictures``, which takes some minutes.

Workers behind the sidecar, and an application that Prometheus scrapes directly, play every problem of a pool on a real
PostgreSQL. A real Prometheus scrapes them. Then the results of the dashboards' queries are drawn.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support import grafana, pg
from tests.support.board_run import INTERVAL, RATE_INTERVAL, SIDECAR, Run, check_panels, watched

from .draw import LABEL, Line, draw

if TYPE_CHECKING:
    from tests.support.grafana import Board

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SECONDS = 134.0  # two rounds of the scenes, and the third up to its checkout timeouts
SHADES = 128  # colours of a picture: no visible difference, at a third of the file size
CHOSEN: dict[str, dict[str, str | list[str]]] = {
    "overview": {},
    "pool": {"job": SIDECAR, "pool": ["orders", "reports"]},
    "database": {},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers a dashboard's queries from the Prometheus of a run."""

    run: Run
    board: Board
    chosen: dict[str, str | list[str]]

    @property
    def start(self) -> float:
        """Start of the time range, in Unix time."""
        return self.run.start

    @property
    def end(self) -> float:
        """End of the time range, in Unix time."""
        return self.run.end

    def over_time(self, expr: str) -> list[Line]:
        """Query the whole time range."""
        found = self.run.prometheus.query_range(self._meant(expr), self.start, self.end, INTERVAL)
        return [Line(one.labels, one.points) for one in found]

    def at_end(self, expr: str) -> list[Line]:
        """Query the end of the time range."""
        return [
            Line(one.labels, [(self.end, one.value)])
            for one in self.run.prometheus.query(self._meant(expr), time=self.end)
        ]

    def _meant(self, expr: str) -> str:
        return grafana.interpolated(expr, self.chosen, self.board, rate_interval=RATE_INTERVAL)


def _shown(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " + ".join(value)


def picture(name: str, run: Run) -> Path:
    """Draw one dashboard and return the file."""
    board, chosen = grafana.load(name), CHOSEN[name]
    path = IMAGES / f"{name}.png"
    values = [f"{one['label']}: {_shown(chosen.get(one['name'], 'All'))}" for one in grafana.variables(board)]
    draw(board, Asked(run, board, chosen), "    ".join(values), path)
    with Image.open(path) as image:
        smaller = image.convert("RGB").quantize(SHADES)
    said = PngInfo()
    said.add_text("Description", LABEL)
    smaller.save(path, optimize=True, pnginfo=said)
    return path


def main() -> None:
    """Play the scenes, scrape them and draw the dashboards."""
    IMAGES.mkdir(exist_ok=True)
    with (
        TemporaryDirectory() as directory,
        pg.running() as server,
        watched(server, Path(directory), SECONDS) as run,
    ):
        for name in grafana.NAMES:
            path = picture(name, run)
            sys.stdout.write(f"{path.relative_to(IMAGES.parents[1])} {path.stat().st_size // 1000} kB\n")
        silent = check_panels(run.prometheus, run.start, run.end)
    if silent:
        sys.exit("nothing was found for:\n" + "\n".join(silent))


if __name__ == "__main__":
    main()
