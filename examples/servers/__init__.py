# SPDX-License-Identifier: Apache-2.0
"""Applications of several worker processes, whose pools a sidecar shows as one.

Each needs two variables: ``DATABASE_URL``, and ``SQLALCHEMY_POOL_EXPORTER_DIR``, the directory that the processes share
with the sidecar. How to start them: docs/deployment.md.
"""
