# SPDX-License-Identifier: Apache-2.0
"""Measure in pairs, on machines that are never quiet.

A single long run of A and then of B compares two moments of the machine, not A with B. So both run in short
turns, A B, B A, A B, and each turn of B is compared only with the turn of A beside it. The median over many such
pairs ignores the pairs in which something else woke up.
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

#: How long two neighbouring turns took, round by round; the first is the one the second is compared with.
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between two bounds; what the bounds are is said by the function that made it."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def middle_half(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of *values*: how far apart single pairs are."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def confidence(values: Sequence[float]) -> Spread:
    """Return the median of *values* and its 95 % confidence interval.

    The bounds are order statistics (the sign test's interval), which assume no distribution: the times of a busy
    machine have none worth a name.
    """
    ranked = sorted(values)
    reach = max(0, floor((len(ranked) - 1.96 * sqrt(len(ranked))) / 2))
    return Spread(ranked[reach], statistics.median(ranked), ranked[-1 - reach])


def added(pairs: Pairs) -> Spread:
    """Return what the second of each pair takes longer than the first, in nanoseconds: the median and the quartiles.

    Taken from the ratios, scaled by the median of the firsts: a machine that runs at half its speed for a while
    doubles every difference but no ratio.
    """
    base = statistics.median(first for first, _ in pairs)
    spread = middle_half([second / first for first, second in pairs])
    return Spread(*(base * (ratio - 1) for ratio in (spread.low, spread.median, spread.high)))


def relative(pairs: Pairs, yardstick: Pairs, *, draws: int = 200) -> Spread:
    """Return what *pairs* add divided by what *yardstick*, from the same rounds, adds, and the 95 % interval of that.

    The interval is that of a bootstrap over the rounds. The rounds' own quotients would not do: in a single round the
    yardstick can come out as nothing, or as less.
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
    """Run every pair of turns *rounds* times and return, per pair, what the two of each round returned.

    The pairs take turns within a round, each round begins with another one, and which half goes first alternates,
    so that no drift of the machine favours anybody.
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
    """Keep the cyclic garbage collector out of the turns: a collection costs more than the turn it falls into.

    What exists already is frozen first, so that the one collection that comes at the end is a short one.
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
