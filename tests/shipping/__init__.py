# SPDX-License-Identifier: Apache-2.0
"""Tests of the chart, the image, the distributions, the pages."""
