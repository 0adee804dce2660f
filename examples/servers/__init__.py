# SPDX-License-Identifier: Apache-2.0
"""Applications with several worker processes, whose pools a sidecar exposes together.

Each needs two environment variables: ``DATABASE_URL``, and ``SQLALCHEMY_POOL_EXPORTER_DIR``, the directory that the
processes share with the sidecar. docs/deployment.md explains how to start them.
"""
