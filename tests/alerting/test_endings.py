# SPDX-License-Identifier: Apache-2.0
"""Every alert ends soon after its incident: an hour that is well, an hour with the incident, and an hour after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from sqlalchemy_pool_exporter.alerting import rules
from tests.support.paths import ROOT
from tests.support.promtool import evaluate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.newest, pytest.mark.requires("promtool")]

RENDERED = ROOT / "config" / "prometheus" / "rules" / rules.FILE
GROUPS = yaml.load(RENDERED.read_text("utf-8"), yaml.CSafeLoader)["groups"]
TIERS = [
    (rule["alert"].removeprefix("SQLAlchemyPool"), rule["labels"]["severity"])
    for group in GROUPS
    for rule in group["rules"]
    if "alert" in rule
]
BEGINS, ENDS, LAST = 60, 120, 180  # minutes


class Ending(NamedTuple):
    """Within how many minutes an alert ends, and its series: what each does when all is well, and in the incident.

    ``5`` is a value, ``+5`` is added each minute; ``now`` is the time, which stands still in the incident if it is
    ``-`` there; ``since`` are the seconds since the incident began.
    """

    within_minutes: int
    series: dict[str, tuple[str, str]]


# A pool of three, whose callers wait for three seconds.
FULL = {
    "capacity{pool='p'}": ("3", "3"),
    "connections{pool='p',state='in_use'}": ("2", "3"),
    "longest_pending_seconds{pool='p'}": ("0", "3"),
}
SLOW = {
    "checkout_wait_seconds_bucket{pool='p',le='0.25'}": ("+600", "+400"),
    "checkout_wait_seconds_bucket{pool='p',le='+Inf'}": ("+600", "+600"),
}
STUCK = {
    **FULL,
    "pending_checkouts{pool='p'}": ("0", "3"),
    "last_checkin_timestamp_seconds{pool='p'}": ("now", "-"),
    "longest_held_seconds{pool='p'}": ("0", "since"),
}
DEADLOCKED = {
    "self_deadlocked{pool='p',worker='0'}": ("0", "1"),
    "checkout_timeouts_total{pool='p'}": ("0", "+2"),
}
FAILING = {"connects_total{pool='p'}": ("0", "+1"), "connect_errors_total{pool='p'}": ("0", "+9")}
RECYCLED = {
    "recycle_seconds{pool='p'}": ("3600", "60"),
    "closes_total{pool='p',reason='recycle'}": ("0", "+100"),
    "checkouts_total{pool='p'}": ("+600", "+600"),
}
IDLE_LIMIT = {
    "database_pool_info{database='d',pool='p'}": ("1", "1"),
    "database_idle_session_timeout_seconds{database='d'}": ("600", "600"),
    "connections{pool='p',state='idle'}": ("2", "2"),
}
ALLOWED = {
    "database_max_connections{database='d'}": ("103", "103"),
    "database_reserved_connections{database='d'}": ("3", "3"),
    "database_pool_info{database='d',pool='p'}": ("1", "1"),
}
READ_ONLY = {
    "database_pool_info{database='d',pool='p'}": ("1", "1"),
    "database_read_only{database='d'}": ("0", "1"),
    "database_read_only_expected{database='d'}": ("0", "0"),
}

ENDINGS = {
    ("Starvation", "warning"): Ending(3, FULL),
    ("Starvation", "critical"): Ending(
        2,
        {
            "checkout_timeouts_total{pool='p'}": ("0", "+60"),
            "checkout_wait_seconds_count{pool='p'}": ("+600", "+600"),
        },
    ),
    ("Stuck", "warning"): Ending(1, STUCK),
    ("Stuck", "critical"): Ending(1, STUCK),
    ("SelfDeadlock", "warning"): Ending(15, DEADLOCKED),
    ("SelfDeadlock", "critical"): Ending(2, DEADLOCKED),
    ("WorkerStalled", "warning"): Ending(
        1,
        {
            "last_checkin_timestamp_seconds{pool='p',worker='0'}": ("now", "now"),
            "last_checkin_timestamp_seconds{pool='p',worker='1'}": ("now", "-"),
            "checkouts_total{pool='p'}": ("+600", "+300"),
        },
    ),
    ("EventLoopBlocked", "warning"): Ending(1, {"event_loop_lag_seconds{worker='0'}": ("0.02", "since")}),
    ("WaitBudgetBurn", "critical"): Ending(5, SLOW),
    ("WaitBudgetBurn", "warning"): Ending(30, SLOW),
    ("NearCapacity", "info"): Ending(5, FULL),
    ("OverflowChurn", "warning"): Ending(
        15,
        {
            "closes_total{pool='p',reason='overflow'}": ("0", "+200"),
            "checkouts_total{pool='p'}": ("+600", "+600"),
        },
    ),
    ("StaleConnections", "info"): Ending(15, {"ping_failures_total{pool='p'}": ("0", "+1")}),
    ("StaleConnections", "warning"): Ending(
        15,
        {"closes_total{pool='p',reason='error'}": ("0", "+6"), "checkouts_total{pool='p'}": ("+600", "+600")},
    ),
    ("NoPrePing", "warning"): Ending(1, {**IDLE_LIMIT, "pre_ping{pool='p'}": ("1", "0")}),
    ("RecycleAboveIdleLimit", "warning"): Ending(
        1, {**IDLE_LIMIT, "recycle_seconds{pool='p'}": ("60", "3600")}
    ),
    ("RecycleStorm", "warning"): Ending(
        2,
        {
            **SLOW,
            "closes_total{pool='p',reason='recycle'}": ("0", "+30"),
            "recycle_seconds{pool='p'}": ("1800", "1800"),
            "connections{pool='p',state='idle'}": ("40", "40"),
        },
    ),
    ("NeedlessRecycling", "info"): Ending(15, RECYCLED),
    ("NeedlessRecycling", "warning"): Ending(15, RECYCLED),
    ("HeldTooLong", "warning"): Ending(1, {"longest_held_seconds{pool='p'}": ("0", "since")}),
    ("LeakedCheckouts", "warning"): Ending(30, {"leaked_checkouts_total{pool='p'}": ("0", "+1")}),
    ("Finding", "info"): Ending(1, {"finding{pool='p',rule='sync_engine_in_loop'}": ("0", "1")}),
    ("ConnectErrors", "warning"): Ending(2, FAILING),
    ("ConnectErrors", "critical"): Ending(1, FAILING),
    ("OldConnections", "info"): Ending(1, {"oldest_connection_seconds{pool='p'}": ("9", "90000")}),
    ("DatabaseNearMax", "warning"): Ending(
        1, {**ALLOWED, "database_connections{database='d',state='idle'}": ("50", "99")}
    ),
    ("DatabaseNearMax", "critical"): Ending(
        1, {**ALLOWED, "database_connections{database='d',state='idle'}": ("50", "99")}
    ),
    ("FleetCeiling", "warning"): Ending(3, {**ALLOWED, "capacity{pool='p'}": ("50", "101")}),
    ("FleetCeiling", "critical"): Ending(3, {**ALLOWED, "capacity{pool='p'}": ("50", "101")}),
    ("ReadOnlyServer", "warning"): Ending(1, READ_ONLY),
    ("ReadOnlyServer", "critical"): Ending(1, READ_ONLY),
    ("IdleInTransaction", "warning"): Ending(
        1, {"database_longest_idle_in_transaction_seconds{database='d'}": ("0", "since")}
    ),
    ("IdleInTransaction", "critical"): Ending(
        1, {"database_longest_idle_in_transaction_seconds{database='d'}": ("0", "since")}
    ),
    ("WorkerGone", "warning"): Ending(1, {"exporter_workers{state='live'}": ("4", "3")}),
    ("WorkerGone", "critical"): Ending(
        1, {"exporter_workers{state='live'}": ("4", "0"), "exporter_workers{state='gone'}": ("0", "4")}
    ),
    ("ExporterDown", "warning"): Ending(1, {"up": ("1", "0"), "exporter_build_info": ("1", "1")}),
    ("ExporterFailing", "warning"): Ending(15, {"exporter_recording_faults_total{pool='p'}": ("0", "+1")}),
    ("ProbeFailing", "warning"): Ending(1, {"database_up{database='d'}": ("1", "0")}),
    ("ReloadFailed", "warning"): Ending(1, {"exporter_config_last_reload_successful": ("1", "0")}),
}
# An hour of half as many workers is what is usual from then on.
SHORTER = {("WorkerGone", "warning"): 20}


@pytest.mark.parametrize("tier", TIERS, ids="-".join)
def test_an_alert_ends_after_its_incident(tier: tuple[str, str], tmp_path: Path) -> None:
    """The alert fires at the end of the incident, not before it, and not some minutes later."""
    ending = ENDINGS[tier]
    name, severity = tier
    ends = BEGINS + SHORTER.get(tier, ENDS - BEGINS)
    firing = f'count(ALERTS{{alertname="SQLAlchemyPool{name}",severity="{severity}",alertstate="firing"}})'
    never = f"max_over_time(({firing})[{BEGINS}m:1m])"
    path = tmp_path / "tests.yml"
    test = {
        "interval": "1m",
        "input_series": [
            {"series": _series(name), "values": " ".join(map(str, _values(does, ends)))}
            for name, does in ending.series.items()
        ],
        "promql_expr_test": [
            {"expr": never, "eval_time": f"{BEGINS}m", "exp_samples": []},
            {"expr": f"{firing} > 0", "eval_time": f"{ends - 1}m", "exp_samples": [{"value": 1}]},
            {"expr": firing, "eval_time": f"{ends + ending.within_minutes}m", "exp_samples": []},
            {"expr": firing, "eval_time": f"{LAST}m", "exp_samples": []},
        ],
    }
    path.write_text(
        json.dumps(
            {
                "rule_files": [str(RENDERED)],
                "evaluation_interval": "1m",
                "group_eval_order": [group["name"] for group in GROUPS],
                "tests": [test],
            }
        )
    )
    done = evaluate(path)
    assert done.returncode == 0, done.stdout + done.stderr


def _series(name: str) -> str:
    """Return a series with its prefix and the labels of its target, as promtool reads it."""
    metric, _, labels = name.replace("'", '"').rstrip("}").partition("{")
    prefix = "" if metric == "up" else "sqlalchemy_pool_"
    matchers = ",".join(filter(None, ('job="j",instance="i"', labels)))
    return f"{prefix}{metric}{{{matchers}}}"


def _values(does: tuple[str, str], ends: int) -> list[float]:
    """Return a value for each minute."""
    values: list[float] = []
    for minute in range(LAST + 1):
        does_now = does[BEGINS <= minute < ends]
        before = values[-1] if values else 0.0
        if does_now.startswith("+") or (does_now == "0" and does[1].startswith("+")):
            values.append(before + float(does_now))
        elif does_now in {"now", "-"}:
            values.append(before if does_now == "-" else 60.0 * minute)
        else:
            values.append(60.0 * (minute - BEGINS) if does_now == "since" else float(does_now))
    return values
