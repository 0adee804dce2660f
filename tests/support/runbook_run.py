# SPDX-License-Identifier: Apache-2.0
"""Follows runbooks to the letter while their incidents are on, as whoever is paged does.

A query or a command is taken from the page. What the index says is replaced, is replaced by the names of the stage, and
durations are as much shorter as those of the rules. Nothing else is changed.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from tests.support.runbook_list import CASES, Case
from tests.support.runbooks import Block, blocks, libpq_variables, page, run_shell
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future
    from pathlib import Path
    from threading import Event

    from tests.support.incidents import Stage
    from tests.support.prometheus import Prometheus

# How long a block is asked again until its output has the culprit: a holder may be between two checkouts.
AGAIN_SECONDS = 30.0
# The containers of a pod are this machine, and the log of the sidecar is in a file.
KUBECTL = """#!/bin/sh
case "$1" in
    exec) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
    logs) exec cat "$SIDECAR_LOG" ;;
esac
echo "no kubectl $*" >&2
exit 1
"""
# The package of this interpreter, whose command need not be on the PATH.
EXPORTER = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -m sqlalchemy_pool_exporter "$@"
"""


# The metrics that have the label ``job``, and recorded series, which have colons, without it.
RAW = r"(?<![\w:])((?:sqlalchemy_pool_\w+|up)\b(?!:))"
OF_DATABASE = r"(database:\w+:\w+)"


class Answer(NamedTuple):
    """What a block of a runbook put out, and the pattern that it must match."""

    asked: str
    output: str
    pattern: str

    @property
    def has_culprit(self) -> bool:
        """Whether the output names what it should."""
        return re.search(self.pattern, self.output) is not None


# What the blocks of each runbook put out, or what went wrong while it was followed.
Answers = dict[Case, list[Answer] | BaseException]


def follow(
    stages: Mapping[str, Stage], prometheus: Prometheus, over: Event, directory: Path, *, faster: float
) -> Answers:
    """Follow each runbook as soon as its alert fires for its incident, or else when the incidents are over."""
    following: dict[Case, Future[list[Answer]]] = {}
    waiting = [case for case in CASES if case.incident in stages]
    firing: set[tuple[str, str | None]] = set()

    def read(case: Case) -> list[Answer]:
        return Reader(case, stages[case.incident], prometheus, directory, faster).follow()

    with ThreadPoolExecutor(4) as executor:
        while waiting:
            is_over = over.wait(0.5)
            with suppress(OSError):  # it answers too late, and is asked again
                firing = {
                    (alert.labels["alertname"], alert.labels.get(label))
                    for alert in prometheus.alerts()
                    if alert.state == "firing"
                    for label in ("job", "database")
                }
            for case in list(waiting):
                if is_over or (f"SQLAlchemyPool{case.alert}", case.incident) in firing:
                    waiting.remove(case)
                    following[case] = executor.submit(read, case)
    return {case: done.exception() or done.result() for case, done in following.items()}


class Reader:
    """Follows one runbook; the mutable state is the process that the last query named."""

    def __init__(
        self, case: Case, stage: Stage, prometheus: Prometheus, directory: Path, faster: float
    ) -> None:
        self._case, self._stage, self._prometheus, self._faster = case, stage, prometheus, faster
        self._pid = "none was named"
        # The first answer to a query is that of the moment of the alert, however late its turn comes.
        self._at: float | None = time.time()
        programs = directory / str(case)
        programs.mkdir()
        for name, script in {"kubectl": KUBECTL, "sqlalchemy-pool-exporter": EXPORTER}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        log = programs / "sidecar.log"
        log.write_text("".join(stage.sidecar.log))
        self._path = str(programs)
        self._environment = {"SIDECAR_LOG": str(log)}

    def follow(self) -> list[Answer]:
        """Ask all blocks in their order."""
        if self._case.connects:
            role = self._case.role or self._stage.incident.role
            self._environment |= libpq_variables(self._stage.database.url(self._stage.incident.driver, role))
        pairs = zip(blocks(page(self._case.alert)), self._case.patterns, strict=True)
        return [self._ask(block, pattern) for block, pattern in pairs if pattern is not None]

    def _ask(self, block: Block, pattern: str) -> Answer:
        def ask() -> Answer:
            facts = self._facts() if re.search(r"<\w+>", pattern) else {}
            exact = re.sub(r"<(\w+)>", lambda match: facts[match[1]], pattern)
            return Answer(block.text, getattr(self, f"_{block.kind}")(block.text), exact)

        last = [ask()]
        at, self._at = self._at, None

        def has_culprit() -> bool:
            if not last[0].has_culprit:
                time.sleep(0.5)
                last[0] = ask()
            return last[0].has_culprit

        eventually(has_culprit, seconds=AGAIN_SECONDS)
        self._at = at
        return last[0]

    def _facts(self) -> dict[str, str]:
        """Return what a pattern may name as ``<name>``, found without the runbook, as regular expressions."""
        stage, name = self._stage, self._case.incident
        facts = {
            "name": name,
            "worker_pids": "|".join(str(worker.pid) for worker in stage.workers) or "none",
            "stopped_pid": str(stage.workers[-1].pid if stage.workers else 0),
            "gone_pids": "|".join(str(worker.pid) for worker in stage.gone) or "none",
            "instance": re.escape(stage.sidecar.url.removeprefix("http://")),
        }
        if self._case.connects:
            rows = stage.database.ask(
                "SELECT replace(state, ' ', '_'), pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND application_name = ''"
            )
            for state in ("active", "idle", "idle_in_transaction"):
                facts[f"{state}_pids"] = "|".join(str(pid) for of, pid in rows if of == state) or "none"
        return facts

    def _promql(self, text: str) -> str:
        expr = self._shortened(re.sub(r'"orders"', f'"{self._case.incident}"', text))
        expr = _with_matcher(expr, RAW, f'job="{self._case.incident}"')
        expr = _with_matcher(expr, OF_DATABASE, f'database="{self._case.incident}"')
        samples = self._prometheus.query(expr, time=self._at)
        with_process = [(sample.value, sample.labels["pid"]) for sample in samples if "pid" in sample.labels]
        self._pid = max(with_process, default=(0.0, self._pid))[1]
        lines = []
        for sample in samples:
            labels = ", ".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            lines.append(f"{{{labels}}} {sample.value:g}\n")
        return "".join(lines)

    def _shortened(self, expr: str) -> str:
        """Make the windows of a query as much shorter as those of the rules."""
        units = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

        def window(match: re.Match[str]) -> str:
            return re.sub(
                r"(\d+)([smhd])",
                lambda part: f"{int(part[1]) * units[part[2]] / self._faster:.0f}ms",
                match[0],
            )

        return re.sub(r"\[[\dsmhd:]+\]", window, expr)

    def _sql(self, text: str) -> str:
        with self._case.beside(self._stage.database.url("")):
            return self._shell("psql -X", text)

    def _console(self, text: str) -> str:
        stage = self._stage
        for old, new in {
            "orders-abc:10079": stage.sidecar.url.removeprefix("http://"),
            "localhost:10079": stage.sidecar.url.removeprefix("http://"),
            "--pool orders": f"--pool {self._case.incident}",
            "/etc/sqlalchemy-pool-exporter/exporter.yaml": str(stage.directory / "exporter.yaml"),
            "/var/run/sqlalchemy-pools": str(stage.directory / "pools"),
        }.items():
            text = text.replace(old, new)
        return self._shell(text)

    def _shell(self, script: str, given: str = "") -> str:
        return run_shell(script, given, path=self._path, **self._environment, PID=self._pid)


def _with_matcher(expr: str, names: str, matcher: str) -> str:
    """Add a matcher to the selectors of some series."""

    def add(match: re.Match[str]) -> str:
        return f"{match[1]}{{{matcher}" + (", " if match[2] else "}")

    return re.sub(rf"{names}(\{{)?", add, expr)
