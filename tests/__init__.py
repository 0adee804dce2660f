# SPDX-License-Identifier: Apache-2.0
"""The tests: real servers, real forks, and independent counts to hold the metrics against."""
