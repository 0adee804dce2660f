# SPDX-License-Identifier: Apache-2.0
"""Tests of what is published: the chart, the image, the distributions and the documentation."""
