# SPDX-License-Identifier: Apache-2.0
"""Grafana dashboards; ``source`` is the code that writes them."""
