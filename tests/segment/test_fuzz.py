# SPDX-License-Identifier: Apache-2.0
"""The reader survives damaged files, and files that change while it reads them."""

from __future__ import annotations

import gc
import math
import os
import random
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.segment.block import WAIT
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.format import FIRST_EXTENT, file_name
from tests.support.descriptors import count_descriptors
from tests.support.samples import Exposition
from tests.support.segments import (
    QUEUE,
    Process,
    Scraper,
    new_block,
    workers,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_dice = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def sane(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a file with two pools in it, and the totals of one that is gone."""
    directory = tmp_path_factory.mktemp("sane")
    process = Process(directory)
    process.count(3)
    new_block(process.lease, "billing", QUEUE)
    gone = new_block(process.lease, "gone", QUEUE)
    gone.doubles[WAIT] = 2.0
    gone.pages.fold(gone)
    process.kill()
    (path,) = directory.iterdir()
    return path.read_bytes()[:40_000]


def _flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 8)):
        data[dice.choice((dice.randrange(64), dice.randrange(8192, 10_300), dice.randrange(len(data))))] ^= (
            1 << dice.randrange(8)
        )


def _cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def _overwrite(data: bytearray, dice: random.Random) -> None:
    at = dice.choice((0, dice.randrange(4096), dice.randrange(8192, 10_300), dice.randrange(len(data))))
    junk = dice.randbytes(dice.randint(1, 300))
    data[at : at + len(junk)] = junk


def _shift(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = bytes(dice.randint(1, 64))


def _poison(data: bytearray, dice: random.Random) -> None:
    """Overwrite doubles with the values that break sums and comparisons."""
    for _ in range(dice.randint(1, 8)):
        at = 8 * dice.randrange(len(data) // 8)
        value = dice.choice((math.inf, -math.inf, math.nan, 1.7e308, -1.7e308, -1.0, 2.0**53, 5e-324))
        struct.pack_into("=d", data, at, value)


@pytest.mark.parametrize("damage", [_flip, _cut, _overwrite, _shift, _poison])
def test_fuzzed_files(
    tmp_path_factory: pytest.TempPathFactory, sane: bytes, damage: Callable[[bytearray, random.Random], None]
) -> None:
    """Any damage to a file costs at most one counted error, and does not change what a file beside it shows.

    A flipped bit can turn one plausible number into another. The reader cannot notice: there is no checksum, because
    the writer stores each value alone. So the test asserts only that the answer is complete.
    """
    directory = tmp_path_factory.mktemp("fuzz")
    neighbour = Process(directory, "neighbour")
    neighbour.count(5)
    registry = Scraper(directory).registry
    gc.collect()
    before = count_descriptors()

    @settings(max_examples=60)
    @given(_dice)
    def check(dice: random.Random) -> None:
        data = bytearray(sane)
        damage(data, dice)
        (directory / file_name(1)).write_bytes(data)
        exposition = Exposition(registry)
        assert exposition.value("checkouts_total", "neighbour") == 5
        states = workers(exposition)
        errors = sum(
            value
            for (name, _), value in exposition.samples.items()
            if name == "sqlalchemy_pool_exporter_segment_errors"
        )
        unfinished = not any(data[:8]) and len(data) % 4096 == 0 and len(data) <= FIRST_EXTENT
        assert states["live"] == 1
        assert states["gone"] + errors == (0 if unfinished else 1)
        # A new process survives the file, too, and finds a file for itself.
        lease = Lease(directory)
        new_block(lease, "orders", QUEUE)
        lease.close()
        (directory / file_name(2)).unlink(missing_ok=True)

    check()
    gc.collect()
    assert count_descriptors() <= before
    neighbour.kill()


def test_changed_while_it_is_read(tmp_path: Path, sane: bytes) -> None:
    """A file that shrinks, grows, vanishes or is replaced during a read costs at most one counted error."""
    neighbour = Process(tmp_path, "neighbour")
    path = tmp_path / file_name(1)
    path.write_bytes(sane)
    stop = threading.Event()

    def disturb() -> None:
        dice = random.Random(11)  # noqa: S311 - the same changes in each run
        while not stop.is_set():
            match dice.randrange(4):
                case 0:
                    os.truncate(path, dice.randrange(len(sane)))
                case 1:
                    path.write_bytes(sane)
                case 2:
                    (tmp_path / "new").write_bytes(sane[: dice.randrange(len(sane))])
                    (tmp_path / "new").replace(path)
                case _:
                    path.unlink()
                    path.write_bytes(sane)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        reader = Reader(tmp_path)
        before = count_descriptors()
        for _ in range(1000):
            fleet = reader.read()
            assert ("neighbour",) in fleet.counts
            assert sum(fleet.errors.values()) <= 1
        # The other thread can have one file open.
        assert count_descriptors() <= before + 1
    finally:
        stop.set()
        disturbing.join()
        neighbour.kill()
