# SPDX-License-Identifier: Apache-2.0
"""The dashboards by Grafana's code: nothing is mistyped, idle, unreadable or healthy without data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import grafana
from tools.grafana.build import run
from tools.grafana.checks import faults
from tools.grafana.excused import EXCUSES, remaining
from tools.grafana.page import PHONE
from tools.grafana.schema import mistyped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.grafana.conftest import Answers
    from tools.grafana.page import Grafana

pytestmark = [
    pytest.mark.grafana,
    pytest.mark.newest,
    pytest.mark.requires("npm", "node", "chromium", "prometheus"),
]


def test_types(built: Path) -> None:
    """The schemas of the oldest and the newest supported Grafana allow everything that the dashboards say."""
    assert [] == mistyped(built, {name: grafana.load(name) for name in grafana.NAMES})


def test_types_of_the_page(built: Path) -> None:
    """The page's own code is correctly typed."""
    run("node", "node_modules/typescript/bin/tsc", "--project", "tsconfig.json")


@pytest.mark.parametrize("name", grafana.NAMES)
def test_faults(page: Grafana, answers: Mapping[str, Answers], name: str) -> None:
    """A dashboard has no faults but those with an excuse, and no excuse without a fault."""
    found = faults(page, name, grafana.load(name), answers[name].incident, answers[name].blind)
    assert [] == remaining(found, [excuse for excuse in EXCUSES if excuse.board == name])


@pytest.mark.parametrize("name", grafana.NAMES)
def test_phone(page: Grafana, answers: Mapping[str, Answers], name: str) -> None:
    """On a phone, every panel is drawn."""
    found = page.draw(name, grafana.load(name), answers[name].incident, PHONE)
    assert [] == [str(fault) for fault in found if fault.kind in {"not drawn", "complaint"}]


@pytest.mark.parametrize("values", [[], ["shop"], ["shop", "web"], ["10.0.0.1:80", "shop (old)"]])
def test_interpolation(page: Grafana, values: list[str]) -> None:
    """Queries are asked with the variables as Grafana puts them in; without an option, All matches nothing."""
    board = grafana.load("overview")
    assert page.interpolated(values) == grafana.interpolated(
        "$recorded", {"recorded": values}, board, rate_interval="60s"
    )
    assert page.interpolated([]) == grafana.interpolated("$recorded", {}, board, rate_interval="60s") == "()"
