# SPDX-License-Identifier: Apache-2.0
"""``sqlalchemy-pool-exporter``, which ends with the demo, however that ends: when its standard input does."""

from __future__ import annotations

import os
import signal
import sys
import threading

from sqlalchemy_pool_exporter.cli import main


def _end_with_the_demo() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_demo, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
