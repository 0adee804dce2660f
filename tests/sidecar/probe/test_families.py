# SPDX-License-Identifier: Apache-2.0
"""A scrape shows the status of each probe, in exactly the declared families."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from sqlalchemy_pool_exporter.metrics import DATABASE_METRICS, ProbeFailure, SessionState
from sqlalchemy_pool_exporter.sidecar.probe.families import families
from sqlalchemy_pool_exporter.sidecar.probe.probe import (
    Probe,
    ProbeStatus,
)
from sqlalchemy_pool_exporter.sidecar.probe.server_state import ServerFacts, ServerState
from tests.support.running_probe import (
    exposition,
    exposition_text,
    parse,
    target,
)

FULL = ProbeStatus(
    database="orders",
    pools=("orders", "reports"),
    probes=12,
    failures={"timeout": 2},
    completed_at=100.0,
    duration_seconds=0.25,
    succeeded_at=1.7e9,
    is_up=True,
    server=ServerState(
        max_connections=100,
        reserved_connections=3,
        connections={"active": 4, "idle": 0},
        application_connections={"web": 3, "other": 1},
        longest_idle_in_transaction_seconds=0.0,
        idle_session_timeout_seconds=600.0,
        idle_in_transaction_session_timeout_seconds=None,
        behind_pooler=False,
        facts=ServerFacts(
            identity="7391234567890123456@1700000000.123456",
            start_time=1700000000.123456,
            is_in_recovery=False,
            is_read_only=True,
            sees_all_sessions=True,
            is_monitor=True,
            session_settings="",
        ),
    ),
)


def test_shows_the_last_result_and_its_age() -> None:
    """A scrape shows the result of the last probe, its age, and every counter, including those that are 0."""
    shown = exposition(FULL, now=107.5)
    failures = {("probe_failures_total", (reason,)): 0.0 for reason in get_args(ProbeFailure)}
    assert (
        failures
        | {
            ("probe_failures_total", ("timeout",)): 2.0,
            ("pool_info", ("orders",)): 1.0,
            ("pool_info", ("reports",)): 1.0,
            ("up", ()): 1.0,
            ("probes_total", ()): 12.0,
            ("read_only_expected", ()): 0.0,
            ("probe_age_seconds", ()): 7.5,
            ("probe_duration_seconds", ()): 0.25,
            ("last_success_timestamp_seconds", ()): 1.7e9,
            ("max_connections", ()): 100.0,
            ("reserved_connections", ()): 3.0,
            ("behind_pooler", ()): 0.0,
            ("read_only", ()): 1.0,
            ("in_recovery", ()): 0.0,
            ("start_time_seconds", ()): 1700000000.123456,
            ("server_info", ("7391234567890123456@1700000000.123456",)): 1.0,
            ("connections", ("unknown",)): 0.0,
            ("connections", ("active",)): 4.0,
            ("connections", ("idle",)): 0.0,
            ("application_connections", ("web",)): 3.0,
            ("application_connections", ("other",)): 1.0,
            ("longest_idle_in_transaction_seconds", ()): 0.0,
            ("idle_session_timeout_seconds", ()): 600.0,
        }
        == shown
    )


def test_before_the_first_probe_only_the_counters_are_there() -> None:
    """Before the first probe a scrape shows no `up` series, but the counters and the database's configured pools."""
    shown = exposition(Probe(target("postgresql://127.0.0.1/x")).status)
    assert {"pool_info", "probes_total", "probe_failures_total", "read_only_expected"} == {
        name for name, _ in shown
    }


@pytest.mark.parametrize(("pools", "expected"), [((), {"orders"}), (("a", "b"), {"a", "b"})])
def test_pools_are_those_configured_or_the_one_with_the_databases_name(
    pools: tuple[str, ...], expected: set[str]
) -> None:
    """Each pool has a sample of its own, even before the database was reached."""
    shown = exposition(Probe(target("postgresql://127.0.0.1/x", pools=pools)).status)
    assert {("pool_info", (pool,)) for pool in expected} == {key for key in shown if key[0] == "pool_info"}


def test_a_database_that_is_down_hides_no_other() -> None:
    """Two databases share the families; the one that is down has up 0, its counters and its last success."""
    down = dataclasses.replace(FULL, database="ledger", is_up=False, server=None)
    text = exposition_text(FULL, down, now=100.0)
    parsed = {family.name: family for family in parse(text)}
    up = {sample.labels["database"]: sample.value for sample in parsed["sqlalchemy_pool_database_up"].samples}
    assert {"orders": 1.0, "ledger": 0.0} == up
    shown = {name for name, _ in exposition(down)}
    counted = {"pool_info", "probes_total", "probe_failures_total", "read_only_expected"}
    assert (
        counted
        | {
            "up",
            "probe_age_seconds",
            "probe_duration_seconds",
            "last_success_timestamp_seconds",
        }
        == shown
    )


def test_the_last_values_hold_after_a_failure_until_they_expire() -> None:
    """A failed probe shows up 0 at once, and the values of the probe before it until they expire; then none."""
    failed = dataclasses.replace(FULL, is_up=False, expires_at=115.0)
    held, gone = exposition(failed, now=114.9), exposition(failed, now=115.0)
    assert held == exposition(FULL, now=114.9) | {("up", ()): 0.0}
    assert ("max_connections", ()) not in gone
    assert ("server_info", ("7391234567890123456@1700000000.123456",)) not in gone
    assert gone["up", ()] == 0.0


def test_everything_shown_is_declared() -> None:
    """Each family has the type, labels and label values of its declaration, and each declaration has a family."""
    full = dataclasses.replace(
        FULL,
        server=dataclasses.replace(
            FULL.server or pytest.fail("no observation"),
            connections=dict.fromkeys(get_args(SessionState), 1),
            idle_in_transaction_session_timeout_seconds=90.0,
            user_connections={"app": 2, "other": 0},
            interactive_timeout_seconds=28800.0,
            threads_running=1,
        ),
    )
    declared = {metric.name: metric for metric in DATABASE_METRICS}
    shown = set()
    for family in families([full], 100.0):
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        shown.add(name)
        metric = declared[name]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        for sample in family.samples:
            assert ("database", *metric.labels) == tuple(sample.labels)
        if metric.values:
            assert set(metric.values) == {sample.labels[metric.labels[0]] for sample in family.samples}
    assert set(declared) == shown


def test_a_status_cannot_be_changed() -> None:
    """A status is immutable, so a scrape can read a status in another thread."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.probes = 13  # type: ignore[misc]


def test_pools_that_differ() -> None:
    """Each pool of a database whose name has several labels is one sample; a pool that is not known has its name."""
    status = dataclasses.replace(FULL, pools=("orders", "billing"))
    (info,) = (
        one
        for one in families([status], 100.0, {"orders": ["orders-5+10", "orders-NullPool"]})
        if one.name.endswith("database_pool")
    )
    assert [sample.labels["pool"] for sample in info.samples] == ["orders-5+10", "orders-NullPool", "billing"]
