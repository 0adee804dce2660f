# SPDX-License-Identifier: Apache-2.0
"""What instrumenting a pool costs: in time, in throughput and in memory. Run ``python -m benchmarks``."""
