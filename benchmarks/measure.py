# SPDX-License-Identifier: Apache-2.0
"""Measure in pairs, because other processes on the machine change the times.

A long run of A and then of B would measure how the load changed between the two. So both run in short turns, A B,
B A, A B, and each turn of B is compared only with the turn of A beside it. The median over many such pairs ignores
the pairs that another process disturbed.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor, inf, sqrt
from typing import TypeVar

_T = TypeVar("_T")

#: Runs one turn and returns how long it took, in nanoseconds.
Turn = Callable[[], int]

#: How long two neighbouring turns took, round by round; the second is compared with the first.
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between two bounds; the function that returns it defines the bounds."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def middle_half(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of *values*, which show how widely single pairs scatter."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def confidence(values: Sequence[float]) -> Spread:
    """Return the median of *values* and its 95 % confidence interval.

    The bounds are order statistics (the sign test's interval). They assume no distribution, because times on a busy
    machine follow no known one.
    """
    ranked = sorted(values)
    reach = max(0, floor((len(ranked) - 1.96 * sqrt(len(ranked))) / 2))
    return Spread(ranked[reach], statistics.median(ranked), ranked[-1 - reach])


def added(pairs: Pairs) -> Spread:
    """Return by how many nanoseconds the second of a pair takes longer than the first: the median and the quartiles.

    They are computed from the ratios and scaled by the median of the firsts. A machine that runs at half its speed for
    a while doubles the differences but not the ratios.
    """
    base = statistics.median(first for first, _ in pairs)
    spread = middle_half([second / first for first, second in pairs])
    return Spread(*(base * (ratio - 1) for ratio in (spread.low, spread.median, spread.high)))


def relative(pairs: Pairs, yardstick: Pairs, *, draws: int = 200) -> Spread:
    """Return the time that *pairs* add divided by the time that *yardstick* adds, with the 95 % interval.

    Both come from the same rounds. The interval comes from a bootstrap over the rounds and not from the quotient of
    each round, because the yardstick's added time can be zero or negative in a single round.
    """
    chance = random.Random(0)  # noqa: S311 - the same figures must give the same interval
    rounds = range(len(pairs))
    quotients = sorted(
        _quotient([pairs[at] for at in drawn], [yardstick[at] for at in drawn])
        for drawn in (chance.choices(rounds, k=len(rounds)) for _ in range(draws))
    )
    tail = draws // 40
    return Spread(quotients[tail], _quotient(pairs, yardstick), quotients[-1 - tail])


def _quotient(pairs: Pairs, yardstick: Pairs) -> float:
    divisor = _added_median(yardstick)
    return _added_median(pairs) / divisor if divisor else inf


def _added_median(pairs: Pairs) -> float:
    base = statistics.median([first for first, _ in pairs])
    return base * (statistics.median([second / first for first, second in pairs]) - 1)


def paired(
    rounds: int, pairs: Sequence[tuple[Callable[[], _T], Callable[[], _T]]]
) -> list[list[tuple[_T, _T]]]:
    """Run every pair of turns *rounds* times and return, for each pair, the two results of each round.

    Each round runs every pair once and begins with a different pair. The order within a pair alternates. So a drift of
    the machine's speed favours no turn.
    """
    times: list[list[tuple[_T, _T]]] = [[] for _ in pairs]
    for number in range(rounds):
        for step in range(len(pairs)):
            index = (number + step) % len(pairs)
            base, other = pairs[index]
            if number % 2:
                later = other()
                times[index].append((base(), later))
            else:
                times[index].append((base(), other()))
    return times


@contextmanager
def no_collections() -> Iterator[None]:
    """Turn the cyclic garbage collector off for the block: a collection costs more than a whole turn.

    Existing objects are frozen for the same time. The collection at the end comes after the measurement.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        gc.collect()
