# SPDX-License-Identifier: Apache-2.0
"""The demo's output: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .observe import PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from .observe import Window
    from .scenes import Result, Scene

PLAIN_SECONDS = 2.0  # between two blocks of plain lines
PLAIN_WIDTH = 100


class Screen(Protocol):
    """The demo's output; a context manager."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def open(self, number: int, count: int, scene: Scene) -> None:
        """Announce a scene."""

    def show(self, window: Window) -> None:
        """Show the newest of the scrapes."""

    def close(self, result: Result) -> None:
        """Show the result of the scene."""

    def end(self, results: Sequence[Result]) -> None:
        """Show the numbers of all scenes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def screen() -> Screen:
    """Return the screen that suits the standard output."""
    console = Console()
    return LiveScreen(console) if sys.stdout.isatty() and not console.is_dumb_terminal else PlainScreen()


HEADINGS = ("used", "idle", "pending", "wait", "hold", "/s", "timeouts", "dead", "recycled", "leaked")
LEGEND = "wait, hold: the longest now; /s: checkouts a second; from there on: counts since the start"


def readings(window: Window, pool: str) -> list[str]:
    """Return a pool's numbers from the newest scrape, in the order of HEADINGS."""
    now = window.snapshots[-1]
    before = window.snapshots[-2] if len(window.snapshots) > 1 else now
    checkouts = now.total("checkouts_total", pool=pool) - before.total("checkouts_total", pool=pool)
    in_use = _count(now.total("connections", pool=pool, state="in_use"))
    return [
        f"{in_use}/{_count(now.total('capacity', pool=pool))}",
        _count(now.total("connections", pool=pool, state="idle")),
        _count(now.total("pending_checkouts", pool=pool)),
        _seconds(now.largest("longest_pending_seconds", pool=pool)),
        _seconds(now.largest("longest_held_seconds", pool=pool)),
        _count(checkouts / (now.at - before.at) if now.at > before.at else 0.0),
        _count(now.total("checkout_timeouts_total", pool=pool)),
        _count(now.total("invalidations_total", pool=pool, kind="hard")),
        _count(now.total("closes_total", pool=pool, reason="recycle")),
        _count(now.total("leaked_checkouts_total", pool=pool)),
    ]


def around(window: Window) -> str:
    """Return one line with the number of live workers and of the server's connections."""
    now = window.snapshots[-1]
    by_application = ", ".join(
        f"{pool} {_count(now.total('database_application_connections', application_name=pool))}"
        for pool in now.pools()
    )
    return (
        f"workers: {_count(now.total('exporter_workers', state='live'))} live; "
        f"server: {_count(now.total('database_connections'))} of "
        f"{_count(now.total('database_max_connections'))} connections ({by_application})"
    )


def _table(*, title: str | None = None, caption: str | None = None) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        # Narrow enough for a terminal of 80 columns.
        box=box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f} s"


def summary(results: Sequence[Result]) -> Table:
    """Return a table with the evidence of each scene."""
    table = _table(title="What the metrics showed")
    for heading in ("scene", "pool", f"{PREFIX}...", "seen", "ok"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        name = result.scene.name
        for evidence in result.scene.evidence:
            holds = evidence.holds(result.window)
            visible = Text("yes" if holds else "NO", style="green" if holds else "bold red")
            table.add_row(
                name, evidence.pool, Text(evidence.series), evidence.reading(result.window), visible
            )
            name = ""
    return table


class PlainScreen:
    """Lines for a pipe, a file or a log."""

    def __init__(self) -> None:
        self._shown_at = -math.inf

    def say(self, line: str) -> None:
        print(line, flush=True)

    def open(self, number: int, count: int, scene: Scene) -> None:
        self._shown_at = -math.inf
        self.say(f"\nscene {number} of {count}: {scene.name}\n  {scene.story}\n  {metrics_of(scene)}")

    def show(self, window: Window) -> None:
        now = window.snapshots[-1]
        if now.at < self._shown_at + PLAIN_SECONDS:
            return
        self._shown_at = now.at
        for pool in now.pools():
            columns = zip(HEADINGS, readings(window, pool), strict=True)
            self.say(
                f"  {pool:8} " + "  ".join(f"{heading} {value:3}" for heading, value in columns).rstrip()
            )
        self.say(f"  {around(window)}")

    def close(self, result: Result) -> None:
        self.say(
            "".join(f"  {line}\n" for line in [verdict(result), *culprits(result)]) + f"  {answers(result)}"
        )

    def end(self, results: Sequence[Result]) -> None:
        self.say("")
        Console(width=PLAIN_WIDTH, color_system=None).print(summary(results))

    def __enter__(self) -> Self:
        self.say(LEGEND)
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveScreen:
    """One table that is redrawn in place, with the scene above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # No refresh thread: the methods below redraw the table when they have new content.
        self._live = Live(console=console, auto_refresh=False)
        self._head = Text()

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def open(self, number: int, count: int, scene: Scene) -> None:
        title = f"\nscene {number} of {count}: {scene.name}\n"
        self._head = Text.assemble((title, "bold"), f"{scene.story}\n", (metrics_of(scene), "cyan"), "\n")

    def show(self, window: Window) -> None:
        table = _table(caption=f"{around(window)}\n{LEGEND}")
        table.add_column("pool", style="bold")
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for pool in window.snapshots[-1].pools():
            table.add_row(pool, *readings(window, pool))
        self._live.update(Group(self._head, table), refresh=True)

    def close(self, result: Result) -> None:
        self._console.print(
            Text.assemble(
                (result.scene.name, "bold"),
                ": ",
                (verdict(result), "green" if result.visible else "bold red"),
            )
        )
        for line in (*culprits(result), answers(result)):
            self.say(line)

    def end(self, results: Sequence[Result]) -> None:
        self._live.update(Text(), refresh=True)
        self._console.print(summary(results))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def metrics_of(scene: Scene) -> str:
    """Return the names of the metrics to look at."""
    return "look at: " + ", ".join(PREFIX + name for name in scene.metrics)


def verdict(result: Result) -> str:
    """Return one line: whether the scene was visible, and its evidence."""
    shown = [
        f"{evidence.pool} {evidence.series} {evidence.reading(result.window)}"
        for evidence in result.scene.evidence
        if result.visible or not evidence.holds(result.window)
    ]
    return f"{'seen' if result.visible else 'not visible'}: {'; '.join(shown)}"


def culprits(result: Result) -> list[str]:
    """Return a line for each culprit of the scene: the place in the application, who, and what the server does."""
    return [culprit.reading(result.window) for culprit in result.scene.culprits]


def answers(result: Result) -> str:
    """Return one line with the responses that the users got."""
    given = [
        f"{app} {status or 'nothing'} x {count}" for (app, status), count in sorted(result.answers.items())
    ]
    return f"users got: {', '.join(given)}"
