# SPDX-License-Identifier: Apache-2.0
"""The one exception of the demo."""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot start or continue; the message is one sentence for the user."""
