# SPDX-License-Identifier: Apache-2.0
"""The sidecar's web server."""
