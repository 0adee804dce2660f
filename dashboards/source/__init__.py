# SPDX-License-Identifier: Apache-2.0
"""Grafana dashboards, and the code that writes them: ``python -m dashboards.source.generate``."""
