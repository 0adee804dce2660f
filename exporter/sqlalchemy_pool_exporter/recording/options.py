# SPDX-License-Identifier: Apache-2.0
"""The options of ``instrument()``: each from its argument, or else from the environment.

An argument that means nothing raises. A variable that means nothing is an operator's mistake, for which the application
must not fail: it is logged, and the default is taken.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, TypedDict

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.errors import TargetError

from .leaks import LeakOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_MOST_SECONDS: Final = 1e9  # of an argument
_HALF: Final = 0.5
_TRACE_AFTER: Final = 0.1  # seconds: what is slower, somebody may ask about


class Options(TypedDict):
    """What is recorded of a pool."""

    sites_from: float
    prefixes: Sequence[str] | None  # of the application's modules; None if no site is recorded
    leaks: LeakOptions | None
    watches_loops: bool
    request_deadline: float
    trace_after: float


def options(  # noqa: PLR0913 - those of instrument()
    *,
    sites: bool | float | None = None,
    application: Sequence[str] | None = None,
    leak_after: float | None = None,
    leak_stack: bool = False,
    loop_lag: bool | None = None,
    request_deadline: float | None = None,
    trace_after: float | None = None,
) -> Options:
    """Return what the arguments of ``instrument()`` mean.

    Raises:
        TargetError: one means nothing.
    """
    leaks = _leaks(leak_after, with_stack=leak_stack)
    sites_from = _sites_from(sites, default=0.0 if leaks else _HALF)
    return {
        "sites_from": sites_from or 0.0,
        "prefixes": None if sites_from is None else _prefixes(application),
        "leaks": leaks,
        "watches_loops": _watches_loops(given=loop_lag),
        "request_deadline": _seconds_of(request_deadline, "request_deadline", environment.REQUEST_DEADLINE),
        "trace_after": _seconds_of(trace_after, "trace_after", environment.TRACE_AFTER, _TRACE_AFTER) or inf,
    }


def _prefixes(application: Sequence[str] | None) -> Sequence[str]:
    """Return the prefixes of the application's modules."""
    given = environment.words(environment.APPLICATION) if application is None else _words(application)
    return tuple(prefix.rstrip(".*") for prefix in given)  # people write ``orders.`` and ``orders.*``, too


def _words(application: Sequence[str]) -> Sequence[str]:
    # A string is a sequence of strings, too: its letters would be taken for prefixes, and no site be right.
    if not isinstance(application, str):
        with suppress(TypeError):
            words = tuple(application)
            if all(isinstance(word, str) and word.strip("-.* ") for word in words):
                return words
    message = f"application must be a list of prefixes of modules, such as ['orders', '-shop.db'], got {application!r}"
    raise TargetError(message)


def _sites_from(given: bool | float | None, *, default: float) -> float | None:  # noqa: FBT001 - as instrument() takes it
    """Return the share of a pool's capacity that must be in use for the site of a checkout to be found.

    Returns:
        0 for each checkout; None for no checkout.
    """
    if given is not None:
        try:
            return _share(given)
        except (TypeError, ValueError) as error:
            message = (
                "sites must be True, False or a share of the pool's capacity, more than 0 and less than 1, "
                f"got {given!r}"
            )
            raise TargetError(message) from error
    said = environment.share(environment.SITES)
    if said is None:
        return default
    try:
        return _share(said)
    except ValueError:
        _logger.warning(
            "%s is neither on nor off nor a share between 0 and 1: %r",
            environment.SITES,
            os.environ.get(environment.SITES),
        )
        return default


def _share(value: bool | float) -> float | None:  # noqa: FBT001 - as above
    if value is True or value is False:
        return 0.0 if value else None
    if not 0.0 < value < 1.0:  # comparisons with NaN are false
        raise ValueError
    return float(value)


def _watches_loops(*, given: bool | None) -> bool:
    """Return whether the lag of event loops is to be recorded.

    Raises:
        TargetError: what is given is neither True nor False.
    """
    if given is None:
        return not environment.is_off(environment.LOOP_LAG)
    if given not in (True, False):  # a text such as "off" would count as true
        raise TargetError(f"loop_lag must be True or False, got {given!r}")
    return bool(given)


def _leaks(after: float | None, *, with_stack: bool) -> LeakOptions | None:
    """Return when a connection is suspected of a leak; None for never."""
    given = _seconds_of(after, "leak_after", environment.LEAK_AFTER)
    return LeakOptions(given, with_stack) if given else None


def _seconds_of(value: float | None, argument: str, variable: str, default: float = 0.0) -> float:
    """Return the seconds of an argument, or else of the environment, or else the default."""
    if value is not None:
        try:
            return _seconds(value)
        except (TypeError, ValueError) as error:
            message = f"{argument} must be a number of seconds, 0 for never, got {value!r}"
            raise TargetError(message) from error
    given = os.environ.get(variable) or default
    try:
        return _seconds(float(given))
    except (TypeError, ValueError):
        _logger.warning("%s is no number of seconds: %r", variable, given)
        return default


def _seconds(value: float) -> float:
    if not 0.0 <= value < _MOST_SECONDS:  # comparisons with NaN are false
        raise ValueError
    return float(value)
