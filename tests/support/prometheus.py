# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus as a process, for the tests: started on a free port, asked over its API, ended.

``with Prometheus(scraping({"jobname": [address]}), tmp_path) as prometheus: prometheus.query("up")``
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.support.process_log import ProcessLog, end_process
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

POLL_SECONDS = 0.05

Labels = dict[str, str]


class Sample(NamedTuple):
    """One series of an instant query; ``labels`` has its name as ``__name__``, if it has one."""

    labels: Labels
    value: float


class Series(NamedTuple):
    """One series of a range query; ``points`` are pairs of Unix time and value."""

    labels: Labels
    points: list[tuple[float, float]]


class Alert(NamedTuple):
    """An alert that is pending or firing; ``labels`` has its name as ``alertname``."""

    labels: Labels
    annotations: Labels
    state: str
    active_at: str


class QueryError(Exception):
    """Prometheus refused a query; the message is the query and what it said."""


def scraping(
    targets: Mapping[str, Iterable[str]],
    *,
    interval: str = "1s",
    rules: Iterable[Path] = (),
    instances: Mapping[str, str] | None = None,
    alertmanagers: Iterable[str] = (),
) -> str:
    """Return a configuration that scrapes targets (``host:port``) by job and evaluates rules, both each interval.

    ``instances`` has the label ``instance`` of the targets whose label differs from their address. Alerts are sent to
    ``alertmanagers`` (``host:port``).
    """
    names = instances or {}
    # JSON is valid YAML, and json.dumps() quotes all strings.
    return json.dumps(
        {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": [str(path) for path in rules],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [
                        {"targets": [target], "labels": {"instance": names.get(target, target)}}
                        for target in of_job
                    ],
                }
                for job, of_job in targets.items()
            ],
        }
    )


class Prometheus:
    """``prometheus`` on a port of its own.

    Args:
        config: the text of its configuration; relative paths in it are relative to ``directory``.
        directory: for its data; empty, or with the data of an earlier process.
        arguments: further arguments of the command line.

    Raises:
        RuntimeError: It did not start, with what it logged.
    """

    def __init__(self, config: str, directory: Path, *arguments: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "prometheus.yml"
        file.write_text(config)
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                *arguments,
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._log = ProcessLog(self._process.stderr)
        self.log = self._log.lines
        try:
            # Prometheus logs its port, and a little later that it has replayed its write-ahead log and answers.
            address = self._wait_for(r'"Listening on".* address=(\S+)')
            self.url = f"http://{address}"
            self._wait_for("Server is ready")
        except BaseException:
            self.end()
            raise

    def query(self, expr: str, *, time: float | None = None) -> list[Sample]:
        """Evaluate a query at a Unix time, or now; a scalar comes as one sample without labels."""
        data = self._ask("query", query=expr, **({} if time is None else {"time": repr(time)}))
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate a query at each step in seconds from one Unix time to another, both included."""
        data = self._ask("query_range", query=expr, start=repr(start), end=repr(end), step=repr(step))
        return [
            Series(one["metric"], [(float(when), float(value)) for when, value in one["values"]])
            for one in data["result"]
        ]

    def series(self, selector: str, start: float, end: float) -> list[Labels]:
        """Return the labels of the series that a selector has between two Unix times."""
        found: list[Labels] = self._ask("series", start=repr(start), end=repr(end), **{"match[]": selector})
        return found

    def exemplars(self, query: str, seconds: float = 600.0) -> list[dict[str, Any]]:
        """Return the exemplars of the series in a query, of the last seconds; it must have the feature enabled."""
        now = time.time()
        data = self._ask("query_exemplars", query=query, start=repr(now - seconds), end=repr(now + 60.0))
        return [exemplar for series in data for exemplar in series["exemplars"]]

    def alerts(self) -> list[Alert]:
        """Return the alerts that are pending or firing now."""
        return [
            Alert(one["labels"], one["annotations"], one["state"], one["activeAt"])
            for one in self._ask("alerts")["alerts"]
        ]

    def samples_read(self, expr: str, **when: str) -> int:
        """Return how many samples a query reads: at ``time``, or from ``start`` to ``end`` by ``step``."""
        path = "query" if "time" in when else "query_range"
        read: int = self._ask(path, query=expr, stats="all", **when)["stats"]["samples"][
            "totalQueryableSamples"
        ]
        return read

    def head_series(self) -> int:
        """Return how many series its memory has."""
        series: int = self._ask("status/tsdb")["headStats"]["numSeries"]
        return series

    def rule_groups(self) -> list[dict[str, Any]]:
        """Return the groups of rules, with how long their last evaluation took."""
        groups: list[dict[str, Any]] = self._ask("rules")["groups"]
        return groups

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {alert.labels["alertname"] for alert in self.alerts() if alert.state == "firing"}

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
        """Ask again and again until a condition holds; AssertionError names ``what`` was waited for."""

        def holds() -> object:
            self._check()
            return condition()

        assert eventually(holds, seconds=seconds, poll_seconds=POLL_SECONDS), (
            f"not within {seconds:g} s: {what}"
        )

    def wait_for(self, expr: str, seconds: float = SECONDS) -> list[Sample]:
        """Wait until a query has series, and return them."""
        self.wait_until(lambda: self.query(expr), expr, seconds)
        return self.query(expr)

    def end(self) -> None:
        """End the process, whatever state it is in."""
        end_process(self._process)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def _ask(self, path: str, **parameters: str) -> Any:
        # POST, since a dashboard's queries may be longer than a request line; the path for alerts has only GET.
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", body, SECONDS) as response:  # noqa: S310
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode()
            raise QueryError(f"{parameters.get('query', path)}\n{said}") from None
        except OSError:
            self._check()
            raise

    def _wait_for(self, pattern: str) -> str:
        found = self._log.wait_for(pattern)
        if found is None:
            raise RuntimeError(f"prometheus did not say {pattern!r}:\n{self._log}")
        return found

    def _check(self) -> None:
        """Raise an error with Prometheus' log if the process has ended."""
        if self._process.poll() is not None:
            self._log.close()
            raise RuntimeError(f"prometheus ended:\n{self._log}")
