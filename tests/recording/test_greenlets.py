# SPDX-License-Identifier: Apache-2.0
"""Every count is exact if greenlets are switched at any moment of a recording, as gevent or an asyncio engine may.

The moments are those of the build that is tested: compiled, the entries of the Python functions that a hook calls.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.moments import Scene, each_moment

greenlet = pytest.importorskip("greenlet")

pytestmark = pytest.mark.usefixtures("little_to_collect")

ACTS = ("checkout", "overflow", "invalidate", "detach", "leak")


class Other:
    """A greenlet that checks out, too. Others run while its connection opens, and while it holds it."""

    def __init__(self, scene: Scene) -> None:
        first, self._one = greenlet.getcurrent(), greenlet.greenlet(self._check_out)
        self._scene, self._leave = scene, first.switch
        scene.database.during_connect = self._leave_if_mine

    def go_on(self) -> None:
        """Let it run until it switches back or ends."""
        if not self._one.dead:
            self._one.switch()

    def end(self) -> None:
        """Let it run to its end."""
        while not self._one.dead:
            self._one.switch()

    def _leave_if_mine(self) -> None:
        if greenlet.getcurrent() is self._one:
            self._leave()

    def _check_out(self) -> None:
        connection = self._scene.pool.connect()
        self._leave()
        connection.close()


def counts(scene: Scene, where: str | None = None) -> list[float]:
    """Return what was counted, once all is idle."""
    last = scene.assert_true(where)
    name = scene.handle.name
    assert last.value("exporter_recording_faults_total", name) == 0
    return [last.value(f"{what}_total", name) for what in ("checkouts", "checkins", "detaches")]


def counts_of(act: str) -> list[float]:
    """Return what is counted for an act and a checkout before it, one after the other."""
    scene = Scene(max_overflow=9)
    Other(scene).end()
    getattr(scene, act)()
    return counts(scene, act)


@pytest.mark.parametrize("act", ACTS)
def test_another_begins_at_any_moment(act: str) -> None:
    """A greenlet that begins to check out anywhere in a recording, and ends after it, is counted; so is the first."""
    expected, others = counts_of(act), []

    def intrude(scene: Scene) -> None:
        others.append(Other(scene))
        others[-1].go_on()

    for scene, where, raised in each_moment(act, intrude, max_overflow=9):
        assert raised is None, where
        others[-1].end()
        assert expected == counts(scene, where), where


@pytest.mark.parametrize("act", ACTS)
def test_another_goes_on_at_any_moment(act: str) -> None:
    """A greenlet that had begun to check out is counted if it goes on anywhere in a recording, and so is the first."""
    expected = counts_of(act)

    class Begun(Scene):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.other = Other(self)
            self.held.append(self.pool.connect())  # so that the other one opens a connection
            self.other.go_on()
            self.held.clear()

    expected[0], expected[1] = expected[0] + 1, expected[1] + 1
    for scene, where, raised in each_moment(act, lambda scene: scene.other.end(), make=Begun, max_overflow=9):
        assert raised is None, where
        assert expected == counts(scene, where), where
