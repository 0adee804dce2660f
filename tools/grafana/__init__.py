# SPDX-License-Identifier: Apache-2.0
"""The dashboards in Grafana's own front-end code: checked by ``make grafana``, drawn by ``make pictures``."""
