# SPDX-License-Identifier: Apache-2.0
"""Histograms of durations: quantiles, spread and the values drawn from them."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from sqlalchemy_pool_exporter.advise.histogram import EMPTY, Histogram, of_cumulative
from tests.support.queues import exponential, of_durations


def test_mean_of_what_is_drawn() -> None:
    """Values drawn have the recorded mean, whatever the shape within a bucket is."""
    chance = random.Random(1)  # noqa: S311 - the same at each run
    for durations in (
        [0.011] * 50 + [0.024],
        [chance.lognormvariate(-4, 1.5) for _ in range(2000)],
        [0.2, 90.0],
    ):
        histogram = of_durations(durations)
        drawn = histogram.at((at + 0.5) / 20_000 for at in range(20_000))
        assert statistics.fmean(durations) == pytest.approx(statistics.fmean(drawn), rel=0.02)
        assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(histogram.spread, rel=0.02)


def test_exponential() -> None:
    """Quantiles and spread of exponential durations are those of the law, within what buckets tell."""
    histogram = exponential(0.02)
    assert histogram.mean == pytest.approx(0.02)
    assert histogram.spread == pytest.approx(1.0, rel=0.15)
    for share in (0.5, 0.9, 0.99):
        assert histogram.quantile(share) == pytest.approx(-0.02 * math.log(1 - share), rel=0.15)


def test_quantile_is_in_its_bucket() -> None:
    """A quantile is within the bounds of the bucket that has it; empty buckets have none."""
    histogram = of_cumulative({0.1: 0.0, 0.25: 99.0, 0.5: 99.0, 1.0: 100.0, math.inf: 100.0}, 20.0)
    assert (0.1, 0.25) == histogram.bucket(0.5)
    assert 0.1 <= histogram.quantile(0.5) <= 0.25
    assert (0.5, 1.0) == histogram.bucket(0.999)
    assert histogram.quantile(0.0) == pytest.approx(0.1, abs=0.15)
    assert (0.1, 0.25) == histogram.bucket(0.99)


def test_above_the_last_bound() -> None:
    """Durations above the last bound are as long as the mean says."""
    histogram = of_cumulative({60.0: 0.0, math.inf: 10.0}, 3000.0)
    assert histogram.mean == pytest.approx(
        statistics.fmean(histogram.at([at / 1000 for at in range(1000)])), rel=0.01
    )
    assert (60.0, math.inf) == histogram.bucket(0.5)


def test_nothing() -> None:
    """Without values everything is 0."""
    assert (0.0, 0.0, 0.0, 0.0) == (EMPTY.number, EMPTY.mean, EMPTY.spread, EMPTY.quantile(0.99))


def test_increases_that_a_rounding_turned_round() -> None:
    """A cumulative count that is below the one before, by Prometheus' extrapolation, is an empty bucket."""
    histogram = of_cumulative({0.1: 10.0000001, 0.5: 10.0, math.inf: 10.0}, 0.5)
    assert Histogram((0.1, 0.5, math.inf), (10.0000001, 0.0, 0.0), 0.5) == histogram
