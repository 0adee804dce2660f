# SPDX-License-Identifier: Apache-2.0
"""Measure what instrumentation costs in time, throughput and memory. Run ``python -m benchmarks``."""
