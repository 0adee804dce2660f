# SPDX-License-Identifier: Apache-2.0
"""Probes of databases: what a PostgreSQL server reports about its connections."""
