# SPDX-License-Identifier: Apache-2.0
"""Plays incidents all at once before a real Prometheus and a real Alertmanager.

Prometheus tells the incidents apart by ``job``; the pool and the database have the same name as the job. What fails in
one incident fails the tests of that incident alone.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.alerting import rules
from tests.support import runbook_run
from tests.support.alertmanager import Alertmanager
from tests.support.incidents import CHANGED, INTERVAL_MINUTES, Stage, thresholds
from tests.support.prometheus import Prometheus, scraping
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.support.incidents import Incident, Tier
    from tests.support.runbook_list import Case

# How much faster than the rules' the time of a run passes on a machine that has nothing else to do. Such a machine with
# two processors makes thirty servers in so many seconds. One that needs twice as long gets twice the time for
# everything, up to four times as much: a scrape that else takes a tenth of a second takes seconds on a busy machine.
FASTER: Final = 15.0
SERVERS, BUILDING_SECONDS = 30, 20.0
SLOWEST: Final = 4.0
# The waits of Alertmanager are not as short. A busy machine is late by seconds, which are minutes in this run, and the
# alert that names a cause would come after its symptom was told.
NOTIFIED_SLOWER: Final = 3
# An incident begins so many seconds after the one before it: hundreds of callers that connect at the same moment would
# keep the machine busy for longer than a rule's `for`.
APART: Final = 0.5
# Before the first incident begins, so many minutes pass without a failed scrape or probe, or else these seconds.
READY_MINUTES: Final = 2.5
READY_SECONDS: Final = 180.0


class Played:
    """A finished run: Prometheus, which still answers queries, and Unix times.

    ``faster`` is how much faster than the rules' its time passed. ``start`` and ``end`` are the run's. ``hired`` has
    the start of each incident's first worker, ``began`` that of each incident. ``answers`` has what the runbooks put
    out, ``faults`` what failed while an incident was staged.
    """

    def __init__(self) -> None:
        self.prometheus: Prometheus
        self.alertmanager: Alertmanager
        self.faster = FASTER
        self.start = self.end = 0.0
        self.hired: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.answers: runbook_run.Answers = {}
        self.faults: dict[str, Exception] = {}

    def seconds(self, minutes: float) -> float:
        """Return how many seconds so many minutes lasted."""
        return 60 * minutes / self.faster

    def stage(self, name: str, act: Callable[[], object]) -> None:
        """Do something for an incident; if it fails, keep the first failure for the tests of that incident."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised in the tests of the incident
            self.faults.setdefault(name, error)

    def check(self, name: str) -> None:
        """Raise what failed while an incident was staged, if something did."""
        if name in self.faults:
            raise self.faults[name]

    def fired(self, name: str) -> dict[Tier, list[float]]:
        """Return the alerts that fired for an incident, each with the Unix times at which it did."""
        self.check(name)
        fired: dict[Tier, set[float]] = {}
        for label in ("job", "database"):
            query = f'ALERTS{{alertstate="firing",{label}="{name}"}}'
            for series in self.prometheus.query_range(query, self.start, self.end, 1.0):
                tier = series.labels["alertname"].removeprefix("SQLAlchemyPool"), series.labels["severity"]
                fired.setdefault(tier, set()).update(when for when, _ in series.points)
        return {tier: sorted(times) for tier, times in fired.items()}

    def pages(self, name: str) -> dict[str, list[float]]:
        """Return the alerts, without prefix, that the pager got for an incident, with the seconds since its start.

        Those after the run are not among them: every target is down then.
        """
        self.check(name)
        pages: dict[str, list[float]] = {}
        for page in self.alertmanager.pages():
            if page.when <= self.end and name in {page.labels.get("job"), page.labels.get("database")}:
                alert = page.labels["alertname"].removeprefix("SQLAlchemyPool")
                pages.setdefault(alert, []).append(page.when - self.began[name])
        return pages

    def answered(self, case: Case) -> list[runbook_run.Answer]:
        """Return what the blocks of a runbook put out."""
        self.check(case.incident)
        answers = self.answers[case]
        if isinstance(answers, BaseException):
            raise answers
        return answers


@contextmanager
def play(
    incidents: list[Incident],
    directory: Path,
    *,
    faster: float = FASTER,
    changed: Mapping[str, str] = CHANGED,
) -> Iterator[Played]:
    """Stage all incidents at once, and yield the finished run while Prometheus still runs."""
    played = Played()
    stages: dict[str, Stage] = {}
    with ExitStack() as stack:
        with ExitStack() as stages_stack, ThreadPoolExecutor(len(incidents) + 1) as executor:
            lock = threading.Lock()

            def each(act: Callable[[Incident], object]) -> None:
                """Do something for all incidents at once that have not failed yet."""
                going_on = [incident for incident in incidents if incident.name not in played.faults]
                list(executor.map(lambda one: played.stage(one.name, lambda: act(one)), going_on))

            def build(incident: Incident) -> None:
                own = ExitStack()
                with lock:
                    stages_stack.callback(played.stage, incident.name, own.close)
                stages[incident.name] = Stage(incident, own)

            def hire(incident: Incident) -> None:
                if incident.workers:
                    stages[incident.name].hire(incident.workers)

            def act(incident: Incident) -> None:
                time.sleep(APART * incidents.index(incident))
                stage, began = stages[incident.name], played.began
                incident.play(stage, lambda: began.setdefault(incident.name, time.time()))

            building = time.monotonic()
            each(build)
            built = (time.monotonic() - building) * SERVERS / len(incidents)
            played.faster = faster / min(max(built / BUILDING_SECONDS, 1.0), SLOWEST)
            each(lambda incident: stages[incident.name].open(played.faster))
            _watch(played, stages, stack, directory, changed)
            # No incident begins before all workers have started: thirty processes that start slow each other down.
            each(hire)
            _wait_until_ready(played)
            over = threading.Event()
            reading = executor.submit(
                runbook_run.follow, stages, played.prometheus, over, directory, faster=played.faster
            )
            try:
                each(act)
            finally:
                over.set()
            played.end = time.time()
            played.answers = reading.result()
            played.hired = {name: stage.hired for name, stage in stages.items()}
        yield played


def _watch(
    played: Played, stages: Mapping[str, Stage], stack: ExitStack, directory: Path, changed: Mapping[str, str]
) -> None:
    """Start Alertmanager, and Prometheus with the rules and all sidecars."""
    rendered = directory / rules.FILE
    rendered.write_text(rules.render(rules.source(), thresholds(played.faster, changed)), "utf-8")
    alertmanager = Alertmanager(directory / "alertmanager", faster=played.faster / NOTIFIED_SLOWER)
    played.alertmanager = stack.enter_context(alertmanager)
    config = scraping(
        {
            name: [stage.sidecar.url.removeprefix("http://")]
            for name, stage in stages.items()
            if name not in played.faults
        },
        interval=f"{1000 * played.seconds(INTERVAL_MINUTES):.0f}ms",
        rules=[rendered],
        alertmanagers=[alertmanager.address],
    )
    played.prometheus = stack.enter_context(Prometheus(config, directory / "prometheus"))
    played.start = time.time()


def _wait_until_ready(played: Played) -> None:
    """Wait until all scrapes and probes have succeeded for a while: an incident is judged by what was before it."""
    window = f"{1000 * played.seconds(READY_MINUTES):.0f}ms"
    failed = f"min_over_time(up[{window}]) == 0 or min_over_time(sqlalchemy_pool_database_up[{window}]) == 0"
    time.sleep(played.seconds(READY_MINUTES))
    eventually(lambda: not played.prometheus.query(failed), seconds=READY_SECONDS, poll_seconds=0.5)
