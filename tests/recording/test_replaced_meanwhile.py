# SPDX-License-Identifier: Apache-2.0
"""What happens while a checkout is recorded: its pool is no longer instrumented, or the process forks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.environment import DIRECTORY
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.database import Database
from tests.support.moments import Scene, each_moment
from tests.support.samples import RegistrySamples
from tests.support.segments import FORKS
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_pool_exporter import Handle

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    return tmp_path


def test_another_pool_gets_the_place(directory: Path) -> None:
    """A checkout stores nothing where another pool is by now, at whatever moment it got that place."""
    others: list[tuple[Handle, CollectorRegistry]] = []

    def replace(scene: Scene) -> None:
        scene.handle.close()
        registry = CollectorRegistry()
        engine = Database().engine()
        others.append((instrument(engine, name="other", registry=registry), registry))
        engine.connect().close()

    for at, (scene, where, raised) in enumerate(each_moment("checkout", replace)):
        assert raised is None, where
        scene.held.clear()
        handle, registry = others.pop()
        fleet = Reader(directory).read()
        assert not any(fleet.errors.values()), where
        samples = RegistrySamples(registry)
        assert samples.value("checkouts_total", "other") == at + 1, where
        assert_sites_add_up(samples, "other")
        handle.close()
    assert at > 8


@FORKS
def test_a_fork_at_any_moment() -> None:
    """If a signal handler forks in a checkout, that counts in each process once, with its site."""
    children: list[int] = []
    is_child = False

    def fork(_: Scene) -> None:
        nonlocal is_child
        pid = os.fork()
        if pid:
            children.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        else:
            is_child = True

    for at, (scene, where, raised) in enumerate(each_moment("checkout", fork)):
        samples = RegistrySamples(scene.registry)
        try:
            assert raised is None
            assert_sites_add_up(samples, scene.handle.name)
            assert samples.value("exporter_recording_faults_total", scene.handle.name) == 0
            if is_child:
                os._exit(0)
            assert children == [0]
            assert samples.value("checkouts_total", scene.handle.name) >= at + 1
        except BaseException as error:
            if is_child:
                os.write(2, f"{where}: {error!r}\n".encode())
                os._exit(1)
            raise AssertionError(where) from error
        children.clear()
        scene.handle.close()
    assert at > 8
