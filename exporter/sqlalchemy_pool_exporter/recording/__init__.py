# SPDX-License-Identifier: Apache-2.0
"""The application's side: what happens to a pool is recorded into its block."""
