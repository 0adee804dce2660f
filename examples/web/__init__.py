# SPDX-License-Identifier: Apache-2.0
"""Web applications, each of which serves its pool's metrics at /metrics; docs/recipes/web.md shows them.

Each needs one environment variable: ``DATABASE_URL``.
"""
