# SPDX-License-Identifier: Apache-2.0
"""A process that begins without standard streams and opens others later, as daemons and uWSGI's spooler do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.segment.descriptors import apart
from tests.support.ports import free_port
from tests.support.programs import PROLOGUE, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open-file-description locks")


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)], ids=str)
def test_locks_and_sockets_are_kept(closed: tuple[int, ...], tmp_path: Path) -> None:
    """The file of the process stays its own, and its endpoint ends when it is closed."""
    port = free_port()
    program = f"""
    import urllib.request
    from pathlib import Path
    from sqlalchemy_pool_exporter import serve
    from sqlalchemy_pool_exporter.segment.lock import is_held

    directory, said = Path({str(tmp_path)!r}), os.dup(1)
    for stream in {closed}:
        os.close(stream)
    pool = QueuePool(Connection, pool_size=2)
    instrument(pool, name="orders", directory=directory, registry=registry)
    served = serve({port}, "127.0.0.1", registry=registry, directory=directory)
    other = os.open("/dev/null", os.O_RDWR)
    for stream in {closed}:
        os.dup2(other, stream)
    held = []
    for path in sorted(directory.iterdir()):  # before a connect, which would take a lock again that was closed
        descriptor = os.open(path, os.O_RDONLY)
        held.append((path.name.partition("-")[0], is_held(descriptor)))
        os.close(descriptor)
    pool.connect().close()
    with urllib.request.urlopen(served.url, timeout=60) as answer:
        assert b'sqlalchemy_pool_checkouts_total{{pool="orders"}} 1.0' in answer.read()
    served.close()
    pool.dispose()
    os.write(said, repr(held).encode())
    """
    result = run(program, prologue=PROLOGUE)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "[('endpoint', True), ('worker', True)]"


def test_only_a_standard_stream_is_moved() -> None:
    """Another descriptor is returned as it is."""
    reader, writer = os.pipe()
    try:
        assert apart(reader) == reader
    finally:
        os.close(reader)
        os.close(writer)
