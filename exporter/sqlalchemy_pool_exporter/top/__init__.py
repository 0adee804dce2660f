# SPDX-License-Identifier: Apache-2.0
"""The board in a terminal: ``sqlalchemy-pool-exporter top``."""
