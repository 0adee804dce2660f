# SPDX-License-Identifier: Apache-2.0
"""The hot path counts each wait and each hold in the right histogram bucket."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.recording.recorder import Recorder
from tests.support import fakes

# Values between the bounds, and the bounds that a float holds exactly: a bucket includes its upper bound.
LENGTHS = (0.0, *((low + high) / 2 for low, high in pairwise(BUCKETS)), 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 90.0)


class Clock:
    """A clock that moves only when a test moves it."""

    now = 1024.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds", LENGTHS)
def test_the_bucket_of_a_wait_and_of_a_hold(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duration counts in the first bucket whose bound is not below it; above all bounds, in the last bucket."""
    clock, recorders = Clock(), []

    def connect() -> Any:
        clock.now += seconds  # the connect takes this long, and the checkout waits for it
        return fakes.connect()

    def recorder(*args: object, **options: object) -> Recorder:
        recorders.append(Recorder(*args, **options, clock=clock))  # type: ignore[arg-type]
        return recorders[-1]

    monkeypatch.setattr("sqlalchemy_pool_exporter.recording.instrument.Recorder", recorder)
    pool = QueuePool(connect)
    handle = instrument(pool, name="p", registry=CollectorRegistry())
    held = pool.connect()
    clock.now += seconds
    held.close()
    values: dict[str, Any] = dict(recorders[0].values())
    handle.close()
    for key in ("checkout_wait_seconds", "hold_seconds"):
        assert values[key].count == 1
        assert sum(bound < seconds for bound in BUCKETS) == values[key].buckets.index(1.0)
        assert values[key].sum == pytest.approx(seconds)
