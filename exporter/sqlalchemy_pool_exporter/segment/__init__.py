# SPDX-License-Identifier: Apache-2.0
"""What the application and the sidecar share: a pool's block, and the file and the directory that carry blocks."""
