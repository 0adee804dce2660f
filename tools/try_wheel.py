# SPDX-License-Identifier: Apache-2.0
"""Try an installed wheel with nothing but its dependencies: record checkouts, and read them in an exposition.

``python tools/try_wheel.py compiled`` fails if the hot path is not compiled, or if a checkout is not counted.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument

CHECKOUTS = 500


def main() -> None:
    """Print the lines of the exposition that are checked; end with an error if one of them is missing."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, pool_pre_ping=True, connect_args={"check_same_thread": False}
    )
    registry = CollectorRegistry()

    def use(_: int) -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    with instrument(engine, name="tried", registry=registry):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(use, range(CHECKOUTS)))
        exposition = generate_latest(registry).decode()
    engine.dispose()
    names = ("sqlalchemy_pool_exporter_build_info{", "sqlalchemy_pool_checkouts_total{")
    found = "\n".join(line for line in exposition.splitlines() if line.startswith(names))
    print(found)
    for expected in (f'hot_path="{sys.argv[1]}"', f'checkouts_total{{pool="tried"}} {CHECKOUTS:.1f}'):
        if expected not in found:
            raise SystemExit(f"not there: {expected}")


if __name__ == "__main__":
    main()
