# SPDX-License-Identifier: Apache-2.0
"""Pushes the metrics of the sidecar over OTLP, for hosts that nobody scrapes."""
