# SPDX-License-Identifier: Apache-2.0
"""Every dashboard query, run on a real Prometheus that has scraped pools in every kind of trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import grafana, pg
from tests.support.board_run import IN_APP, INTERVAL, RATE_INTERVAL, SIDECAR, Run, check_panels, watched
from tests.support.incidents import INTERVAL_MINUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.incident_run import Played

pytestmark = [pytest.mark.newest, pytest.mark.soak, pytest.mark.requires("prometheus")]
SECONDS = 65.0

# Queries with series only from a sidecar, and those with series only from an application's own endpoint, which shows
# every process of its directory, too: what is left is the configuration that only a sidecar reads, and what its probes
# of databases say of held connections.
OF_SIDECAR = {
    "Configuration current A",
    "Configuration read A",
    "Behind a lock A",
    "Held, idle in transaction A",
    "What held connections do in the server A",
}
# Targets of this run have no labels of a fleet.
OF_FLEET = {"$cluster", "$namespace"}
# And the database of this run is PostgreSQL.
OF_MYSQL = {"Connections by user A", "Limits of the server against those of the pools E", "Threads running A"}
OF_APPLICATION = {"What the exporter could not see D", "Segments shared A"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with (
        pg.running() as server,
        watched(server, tmp_path_factory.mktemp("boards"), SECONDS) as run,
    ):
        yield run


def _titles(silent: list[str]) -> set[str]:
    return {line.split(": ")[1] for line in silent}


@pytest.mark.parametrize("chosen", [{}, {"job": [SIDECAR, IN_APP], "pool": ["orders", "tickets", "mail"]}])
def test_every_query_has_series(seen: Run, chosen: dict[str, str | list[str]]) -> None:
    """With All or several values selected, all panels and variables have series, but those of a fleet or of MySQL."""
    silent = check_panels(seen.prometheus, seen.start, seen.end, chosen=chosen)
    assert OF_FLEET | OF_MYSQL == _titles(silent)


def test_one_worker(seen: Run) -> None:
    """With one worker selected, every panel of the pool dashboard has series."""
    chosen: dict[str, str | list[str]] = {"job": SIDECAR, "worker": "000"}
    silent = check_panels(seen.prometheus, seen.start, seen.end, chosen=chosen, names=["pool"])
    assert OF_FLEET == _titles(silent)


def test_sidecar_alone(seen: Run) -> None:
    """With only the sidecar selected, all queries have series, except for those of an application's own endpoint."""
    silent = check_panels(seen.prometheus, seen.start, seen.end, chosen={"job": SIDECAR})
    assert OF_APPLICATION | OF_FLEET | OF_MYSQL == _titles(silent)


def test_application_alone(seen: Run) -> None:
    """With only the application selected, all queries of overview and pool have series, except those of a sidecar."""
    silent = check_panels(
        seen.prometheus, seen.start, seen.end, chosen={"job": IN_APP}, names=["overview", "pool"]
    )
    assert OF_SIDECAR | OF_FLEET == _titles(silent)


def test_incidents(incidents: Played) -> None:
    """While all incidents play, all queries have series, except for those of an application's own endpoint."""
    silent = check_panels(
        incidents.prometheus,
        incidents.start,
        incidents.end,
        step=incidents.seconds(INTERVAL_MINUTES),
        rate_interval=f"{incidents.seconds(4 * INTERVAL_MINUTES):.0f}s",
    )
    assert OF_APPLICATION | OF_FLEET | OF_MYSQL == _titles(silent)


def test_an_empty_panel_is_found(seen: Run) -> None:
    """The check reports every query that finds no series."""
    silent = check_panels(seen.prometheus, seen.start, seen.end, chosen={"job": "none"}, names=["pool"])
    board = grafana.load("pool")
    # The variable `job` still has values, and the annotation can match alerts without a job.
    shown = [one for one in grafana.variables(board) if not grafana.is_hidden(one)]
    assert len(grafana.targets(board)) + len(shown) - 1 <= len(silent)


def _asked(seen: Run, name: str, title: str, **chosen: str | list[str]) -> list[list[float]]:
    """Return the values of a panel's queries, one list for each."""
    board = grafana.load(name)
    return [
        [
            value
            for one in seen.prometheus.query_range(
                grafana.interpolated(target.expr, chosen, board, rate_interval=RATE_INTERVAL),
                seen.start,
                seen.end,
                INTERVAL,
            )
            for _, value in one.points
        ]
        for target in grafana.targets(board)
        if target.panel["title"] == title
    ]


@pytest.mark.parametrize("job", [SIDECAR, IN_APP])
def test_one_process_is_held_against_its_own_capacity(seen: Run, job: str) -> None:
    """With and without a sidecar, the limit of a process is six connections, and the fullest process reaches it."""
    _, limit = _asked(seen, "pool", "In use against capacity, by process", job=job)
    assert {6.0} == set(limit)
    (fullest,) = _asked(seen, "overview", "Fullest process", job=job)
    assert 1.0 == max(fullest)


@pytest.mark.parametrize(("job", "before", "after"), [(SIDECAR, 3.0, 2.0), (IN_APP, 1.0, 1.0)])
def test_workers_are_counted(seen: Run, job: str, before: float, after: float) -> None:
    """The processes of a directory are counted, behind a sidecar and by an application's own endpoint."""
    live, gone = _asked(seen, "overview", "Workers", job=job)
    assert (before, after) == (live[0], live[-1])
    assert before - after == gone[-1]


def test_parts_of_a_wait_are_all_of_it(seen: Run) -> None:
    """Queue, connecting and pings add up to the mean wait of the histogram."""
    board = grafana.load("pool")
    chosen: dict[str, str | list[str]] = {"job": SIDECAR, "pool": "orders"}
    rate = 'sum(rate(sqlalchemy_pool_checkout_wait_seconds_{}{{job="shop", pool="orders"}}[4s]))'
    mean = f"{rate.format('sum')} / {rate.format('count')}"
    parts = [
        f"({grafana.interpolated(target.expr, chosen, board, rate_interval=RATE_INTERVAL)})"
        for target in grafana.targets(board)
        if target.panel["title"] == "Where a checkout's time goes"
    ]
    assert 3 == len(parts)
    (error,) = seen.prometheus.query_range(
        f"abs({' + '.join(parts)} - {mean})", seen.start + 5, seen.end, INTERVAL
    )
    # A phase is counted when it ends, up to a second before its wait is; so compare the median.
    errors = sorted(value for _, value in error.points)
    assert errors[len(errors) // 2] < 1e-6


def test_ceiling_is_of_all_that_use_the_database(seen: Run) -> None:
    """The ceiling sums the pools of all processes, two pools of six each: four processes at first, three at the end."""
    ceiling, _, allowed = _asked(seen, "database", "What the pools could ask for")
    assert 3 * 2 * 6 == ceiling[-1]
    assert 4 * 2 * 6 == max(ceiling)
    assert {200.0 - 3.0} == set(allowed)
