# SPDX-License-Identifier: Apache-2.0
"""Pools in trouble before a real Prometheus, and then nothing: what the dashboards are checked with."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.support import pg
from tests.support.board_run import watched

from .answers import Asking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SECONDS = 65.0  # of the incidents, each of which happens once in a minute
LOST = 12.0  # seconds without targets; Prometheus notices within one


class Stage(NamedTuple):
    """How to ask of a time with incidents, and of times in which nothing is seen, by what they are called."""

    incident: Asking
    blind: Mapping[str, Asking]


@contextmanager
def staged(directory: Path, seconds: float = SECONDS, lost: float = LOST) -> Iterator[Stage]:
    """Play the incidents, be without targets for ``lost`` seconds, and let both times be asked for."""
    with pg.running() as server, watched(server, directory, seconds) as run:
        run.lose_targets()
        time.sleep(lost)
        before, now = run.start - 3600, time.time()
        yield Stage(
            Asking(prometheus=run.prometheus, start=run.start, end=run.end),
            {
                "never scraped": Asking(prometheus=run.prometheus, start=before, end=before + lost),
                # The end of the trouble is still in the range, and most of it is without targets.
                "targets lost": Asking(prometheus=run.prometheus, start=now - 1.3 * lost, end=now),
            },
        )
