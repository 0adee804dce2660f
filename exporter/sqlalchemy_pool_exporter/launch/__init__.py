# SPDX-License-Identifier: Apache-2.0
"""Instruments an application without a line in it: the command ``run``, and what it starts in each Python process."""
