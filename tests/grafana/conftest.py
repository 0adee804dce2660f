# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the page with Grafana's code, and what a real Prometheus answers of pools in trouble and of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support import grafana
from tools.grafana import build
from tools.grafana.page import Grafana, opened
from tools.grafana.stage import staged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tools.grafana.answers import Json
    from tools.grafana.stage import Stage


class Answers(NamedTuple):
    """The answers to a dashboard's queries, during the incidents and by the name of each blindness."""

    incident: Json
    blind: Mapping[str, Json]


@pytest.fixture(scope="session")
def built() -> Path:
    """Install Grafana's packages, if they are not there, and put the page together."""
    return build.built()


@pytest.fixture(scope="session")
def page(built: Path) -> Iterator[Grafana]:
    """Open the page in Chromium."""
    with opened(built) as page:
        yield page


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Play the incidents and the blindness."""
    with staged(tmp_path_factory.mktemp("grafana")) as stage:
        yield stage


@pytest.fixture(scope="session")
def answers(stage: Stage) -> Mapping[str, Answers]:
    """Return the answers to all queries, by dashboard."""
    return {
        name: Answers(
            stage.incident.answers(grafana.load(name)),
            {state: asking.answers(grafana.load(name)) for state, asking in stage.blind.items()},
        )
        for name in grafana.NAMES
    }
