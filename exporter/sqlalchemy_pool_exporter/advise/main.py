# SPDX-License-Identifier: Apache-2.0
"""Runs the command ``advise``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.top.columns import printable
from sqlalchemy_pool_exporter.top.main import credentials_of
from sqlalchemy_pool_exporter.top.output import write, write_json
from sqlalchemy_pool_exporter.top.where import is_url

from .advice import Objective, advise
from .fleet import fit, with_given
from .prometheus import Prometheus, Span
from .report import Report, as_json, text
from .source import Directory, Endpoint, since_start, watch

if TYPE_CHECKING:
    from argparse import Namespace

    from .source import Scrapes, Watched


def run(options: Namespace) -> None:
    """Print the advice.

    Raises:
        BoardError: what it needs cannot be read, or has no pool.
    """
    watched = _watched(options)
    report = report_of(
        watched,
        Objective(options.wait, options.share, options.burst),
        names=options.pool,
        reserve=options.reserve,
        max_connections=options.max_connections,
    )
    if options.json:
        write_json(as_json(report))
    else:
        write(text(report))


def report_of(
    watched: Watched,
    objective: Objective,
    *,
    names: list[str],
    reserve: float,
    max_connections: int | None,
) -> Report:
    """Return the advice for all pools, or those of these names.

    Raises:
        BoardError: no pool has such a name.
    """
    servers = with_given(watched.servers, watched.observations, max_connections)
    of_pool = {pool: server for server in servers for pool in server.pools}
    known = {one.pool for one in watched.observations}
    if missing := sorted(set(names) - known):
        there_are = printable(", ".join(sorted(known)))
        raise BoardError(f"no live pool is called {', '.join(map(repr, missing))}; there are {there_are}")
    advices = [advise(one, objective, of_pool.get(one.pool)) for one in watched.observations]
    # All pools of a server count, also those that are not shown.
    fits = [
        fit(server, on, objective, reserve)
        for server in servers
        if (on := [one for one in advices if one.server is server])
    ]
    shown = [one for one in advices if not names or one.observed.pool in names]
    shown_names = {one.observed.pool for one in shown}
    return Report(
        watched.how, objective, reserve, shown, [one for one in fits if shown_names.intersection(one.pools)]
    )


def _watched(options: Namespace) -> Watched:
    if options.prometheus is not None:
        prometheus = Prometheus(options.prometheus, credentials_of(options), options.match)
        return prometheus.watch(Span(options.range, min(options.window, options.range)))
    source = _scrapes(options)
    return since_start(source) if options.since_start else watch(source, options.seconds)


def _scrapes(options: Namespace) -> Scrapes:
    where = options.where or os.environ.get(environment.DIRECTORY)
    if not where:
        raise BoardError(f"give a directory or a URL, or --prometheus, or set {environment.DIRECTORY}")
    if is_url(where):
        return Endpoint(where, credentials_of(options))
    return Directory(Path(where))
