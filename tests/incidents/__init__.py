# SPDX-License-Identifier: Apache-2.0
"""Incidents that real applications have on a real PostgreSQL, and the line from which an engineer knows the culprit."""
