# SPDX-License-Identifier: Apache-2.0
"""Common mistakes in how pools are configured and used, found from what is recorded."""
