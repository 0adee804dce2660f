# SPDX-License-Identifier: Apache-2.0
"""Run ``sqlalchemy-pool-exporter`` until its standard input ends, so that it stops even if the demo is killed."""

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
