# SPDX-License-Identifier: Apache-2.0
"""Evidence from scrapes: when it holds, how its reading is printed, and the verdict on a scene."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demo.observe import Culprit, Evidence, Snapshot, Window, peaked, rose, slower_than
from demo.scenes import SCENES, Result
from demo.table import culprits, readings, verdict

pytestmark = pytest.mark.newest

EXPOSITION = """\
sqlalchemy_pool_info{pool="a",pool_class="QueuePool"} 1
sqlalchemy_pool_info{pool="b",pool_class="NullPool"} 1
sqlalchemy_pool_checkouts_total{pool="a"} %(a)s
sqlalchemy_pool_checkouts_total{pool="b"} 0
sqlalchemy_pool_pending_checkouts{pool="a",worker="0"} %(a)s
sqlalchemy_pool_pending_checkouts{pool="a",worker="1"} 2
sqlalchemy_pool_checkout_wait_seconds_bucket{pool="a",le="0.25"} 1
sqlalchemy_pool_checkout_wait_seconds_bucket{pool="a",le="+Inf"} %(a)s
sqlalchemy_pool_checkout_wait_seconds_count{pool="a"} %(a)s
sqlalchemy_pool_checkout_wait_seconds_sum{pool="a"} 9
python_gc_collections_total{generation="0"} 7
"""


@pytest.fixture
def window() -> Window:
    """A scene of three scrapes: a counter goes from 1 to 4, and a gauge rises and falls."""
    window = Window(Snapshot(EXPOSITION % {"a": 1}, at=0.0))
    window.add(Snapshot(EXPOSITION % {"a": 5}, at=1.0))
    window.add(Snapshot(EXPOSITION % {"a": 4}, at=2.0))
    return window


def test_workers_are_taken_together(window: Window) -> None:
    """A pool in several processes is one pool: counts are summed, and of ages the largest is taken."""
    assert window.snapshots[0].pools() == ["a", "b"]
    assert window.snapshots[0].total("pending_checkouts", pool="a") == 3
    assert window.snapshots[1].largest("pending_checkouts", pool="a") == 5
    assert readings(window, "b")[5] == "0"


@pytest.mark.parametrize(
    ("evidence", "holds", "reading"),
    [
        (rose("a", "checkouts_total"), True, "+3"),
        (rose("a", "checkouts_total", absent=True), False, "+3"),
        (rose("b", "checkouts_total"), False, "+0"),
        (rose("b", "checkouts_total", absent=True), True, "+0"),
        (rose("c", "checkouts_total"), False, "not exposed"),
        (rose("c", "checkouts_total", absent=True), False, "not exposed"),
        (peaked("a", "pending_checkouts"), True, "up to 7"),
        (peaked("a", "pending_checkouts", worker="0"), True, "up to 5"),
        (peaked("a", "pending_checkouts", above=6), True, "up to 7"),
        (peaked("a", "pending_checkouts", above=7), False, "up to 7"),
        (peaked("b", "pending_checkouts"), False, "not exposed"),
        (slower_than("0.25", "a", "checkout_wait_seconds"), True, "+3 over 0.25 s"),
        (slower_than("0.3", "a", "checkout_wait_seconds"), False, "not exposed"),
    ],
)
def test_evidence_is_a_number_that_is_there(
    window: Window, evidence: Evidence, *, holds: bool, reading: str
) -> None:
    """Evidence needs an exposed number; a missing series is never evidence, not even of an absence."""
    assert (evidence.holds(window), evidence.reading(window)) == (holds, reading)


def test_a_verdict_names_what_is_missing(window: Window) -> None:
    """If a scene is not visible, the verdict names the evidence that is missing."""
    result = Result(SCENES[1], window, {})
    assert not result.visible
    assert verdict(result).startswith("not visible: orders pending_checkouts not exposed; ")


def held(seconds: float, **changed: object) -> dict[str, object]:
    """Return a held connection as the board has it."""
    server = {"state": "idle", "state_seconds": seconds - 0.1}
    known = {"pool": "orders", "site": "demo.orders:app.<locals>.leak:61", "holder": "Task-7", "pid": "41"}
    return {**known, "held_seconds": seconds, "server": server, **changed}


def test_a_culprit_is_named() -> None:
    """The connection that was held for longest is shown, with place, task, process and the state of its session."""
    window = Window(Snapshot("", at=0.0, held=[held(0.5)]))
    window.add(Snapshot("", at=1.0, held=[held(1.5), held(9.0, server=None), held(9.0, pool="billing")]))
    window.add(Snapshot("", at=2.0))
    leak = SCENES[-1]
    (line, missing) = culprits(Result(leak, window, {}))
    who = "demo.orders:app.<locals>.leak:61 (Task-7) in process 41"
    assert f"orders: held for 1.5 s by {who}, idle in the server for 1.4 s" == line
    assert missing.startswith("billing: held for 9.0 s by ")
    assert not Culprit("orders", "leak", "active").holds(window)
    assert not Culprit("orders", "query", "idle").holds(window)


def test_a_scene_without_its_culprit_is_not_visible() -> None:
    """The starvation and the leak scene are visible only if the board names who has the connections."""
    for scene in SCENES:
        assert bool(scene.culprits) == (scene.name in {"starvation", "leak"})
    window = Window(Snapshot("", at=0.0, held=[held(1.0), held(2.0, pool="billing")]))
    assert Result(replace(SCENES[-1], evidence=()), window, {}).visible
    assert not Result(replace(SCENES[1], evidence=()), window, {}).visible
