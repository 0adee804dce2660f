# SPDX-License-Identifier: Apache-2.0
"""Scripts that generate parts of the documentation and of the chart, and that check licences."""
