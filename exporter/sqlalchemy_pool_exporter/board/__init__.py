# SPDX-License-Identifier: Apache-2.0
"""The board: which pool hurts now, and who holds its connections; as JSON, as a page and in a terminal."""
