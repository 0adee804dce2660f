# SPDX-License-Identifier: Apache-2.0
"""Engines for databases of several kinds; docs/recipes/databases.md shows them."""
