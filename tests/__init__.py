# SPDX-License-Identifier: Apache-2.0
"""The tests: they check the metrics against counts of their own, with real servers and real forks."""
