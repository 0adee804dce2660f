# SPDX-License-Identifier: Apache-2.0
"""A fleet of sidecars on one real Prometheus: the series and memory it takes, and how long each panel's queries do."""
