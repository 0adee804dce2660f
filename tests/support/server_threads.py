# SPDX-License-Identifier: Apache-2.0
"""The threads of servers of this process."""

from __future__ import annotations

import threading


def server_threads() -> set[threading.Thread]:
    """Return the threads that serve. What other tests left may start and end other threads at any time."""
    return {thread for thread in threading.enumerate() if thread.name == "sqlalchemy-pool-exporter"}
