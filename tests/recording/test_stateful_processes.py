# SPDX-License-Identifier: Apache-2.0
"""The numbers of several processes are true after each step of a random walk, which Hypothesis chooses.

Its steps: engines of the same name in one process and in several, engines that are dropped, forks with and without
Python's hooks, kill -9, deleted segments, and time limits that another thread raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.walk_machine import Walk

if TYPE_CHECKING:
    from pathlib import Path

# Derandomized, so a new failure mostly comes from a change of the code: only what the time limits interrupt differs.
_ALWAYS: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "derandomize": True, "deadline": None}


def _run(directory: Path, **how: int) -> None:
    class Here(Walk):
        def __init__(self) -> None:
            super().__init__(directory)

    run_state_machine_as_test(Here, settings=settings(**how, **_ALWAYS))  # type: ignore[arg-type]


def test_numbers_of_processes_are_true(tmp_path: Path) -> None:
    """After each step a reader of the directory shows what the processes did and have."""
    _run(tmp_path, max_examples=6, stateful_step_count=30)


@pytest.mark.soak
def test_numbers_of_processes_stay_true(tmp_path: Path) -> None:
    """The same test, with more and longer runs."""
    _run(tmp_path, max_examples=25, stateful_step_count=40)
