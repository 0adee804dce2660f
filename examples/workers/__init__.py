# SPDX-License-Identifier: Apache-2.0
"""Workers of task queues, whose main or first process serves the pools of all; docs/recipes/workers.md shows them.

Each needs ``DATABASE_URL``, and ``SQLALCHEMY_POOL_EXPORTER_DIR``, the directory that its processes share. It serves on
``METRICS_PORT``, by default 10081.
"""
