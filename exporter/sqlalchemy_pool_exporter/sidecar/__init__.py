# SPDX-License-Identifier: Apache-2.0
"""The other process: all workers of a directory in one scrape, and what their databases say."""
