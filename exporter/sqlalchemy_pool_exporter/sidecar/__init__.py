# SPDX-License-Identifier: Apache-2.0
"""The exporter's own process: serves the metrics of all workers of a directory, and of the databases it probes."""
