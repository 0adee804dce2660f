# SPDX-License-Identifier: Apache-2.0
"""What an engineer reads while an incident lasts: the board as JSON and as a page, the metrics, and the logs."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from html import unescape
from typing import TYPE_CHECKING, Any

from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.incidents import Stage, Worker
    from tests.support.samples import Samples

# How the board writes a duration, and the log one in seconds.
SECONDS = r"\d[\d.]*(?: ms| s| min(?: \d+ s)?)"
LOGGED = r"\d[\d.]* s"
RATE = r"\d[\d.]*/s"
WAIT = rf"(?:1 caller waits, for {SECONDS}|\d+ callers wait, the first for {SECONDS})"


def site(function: str) -> str:
    """Return the pattern of the places in a function of ``tests.incidents``, given as ``module:function``."""
    return rf"tests\.incidents\.{re.escape(function)}:\d+"


class Engineer:
    """Reads the endpoint of a stage until it says what is looked for."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def board(self) -> Any:
        """Return the JSON."""
        status, body = self._stage.sidecar.get("/api/v1/pools")
        assert status == 200, body
        return json.loads(body)

    def number(self, worker: Worker) -> str:
        """Return the board's number of a worker, which has a file a moment before it has its pool."""

        def numbers() -> list[Any]:
            workers = [one for pool in self.board()["pools"] for one in pool["workers"]]
            return [one["worker"] for one in workers if one["pid"] == str(worker.pid)]

        found = eventually(numbers, poll_seconds=0.2)
        assert found, f"no {worker}\n{self.all()}"
        return str(found[0])

    def where(self, worker: Worker) -> str:
        """Return what the board calls a worker, as a pattern."""
        return re.escape(f"worker {self.number(worker)} (pid {worker.pid})")

    def line(self, kind: str, pattern: str) -> str:
        """Return the line of the board that says a condition; it is in the JSON and on the page, complete."""
        seen: set[str] = set()
        found = ""

        def in_json() -> bool:
            nonlocal found
            for one in self.board()["conditions"]:
                if one["kind"] == kind:
                    seen.add(one["text"])
                    if re.fullmatch(pattern, one["text"]):
                        found = one["text"]
            return bool(found)

        is_said = eventually(in_json, poll_seconds=0.2)
        assert is_said, "\n".join([f"no {kind} like {pattern}", *sorted(seen), self.all()])
        assert eventually(lambda: re.search(pattern, self._page()), poll_seconds=0.2), self._page()
        return found

    def held(self, site_like: str, state: str, **expected: Any) -> Any:
        """Return a held connection of the JSON with a site, a state in the server, and other values."""

        def matching() -> list[Any]:
            return [
                one
                for one in self.board()["held"]
                if re.fullmatch(site_like, one["site"])
                and (one["server"] or {}).get("state") == state
                and all(one[name] == value for name, value in expected.items())
            ]

        found = eventually(matching, poll_seconds=0.2)
        assert found, f"{site_like} {state} {expected}\n{self.all()}"
        return found[0]

    def metric(self, name: str, above: float = 0.0, **labels: str) -> float:
        """Return the sum of the samples that have these labels, once it is above a number; a site is its beginning."""

        def total() -> float:
            with suppress(OSError):
                return sum(_matching(self._stage.sidecar.samples(), f"sqlalchemy_pool_{name}", labels))
            return 0.0

        value = eventually(lambda: found if (found := total()) > above else 0.0, poll_seconds=0.2)
        assert value > above, f"{name} {labels} is not above {above}\n{self.all()}"
        return value

    def log(self, worker: Worker, pattern: str) -> str:
        """Return the line of a worker's log that has a pattern."""
        found = eventually(lambda: re.search(f"(?m){pattern}.*", worker.log.read_text()), poll_seconds=0.2)
        assert found, f"{pattern}\n{worker.log.read_text()}"
        return found[0]

    def all(self) -> str:
        """Return everything, for the message of a failure."""
        board = self.board()
        logs = [worker.log.read_text() for worker in self._stage.workers]
        return json.dumps([board["conditions"], board["held"], board["pools"]], indent=1) + "\n".join(
            [*logs, *self._stage.sidecar.log]
        )

    def _page(self) -> str:
        return unescape(re.sub(r"<[^>]*>", "", self._stage.sidecar.get("/")[1]))


def _matching(samples: Samples, name: str, labels: dict[str, str]) -> list[float]:
    return [
        value
        for (found, pairs), value in samples.items()
        if found == name
        and all(dict(pairs).get(label, "").startswith(text) for label, text in labels.items())
    ]
