# SPDX-License-Identifier: Apache-2.0
"""Why a probe failed, as a metric and the log say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.metrics import ProbeFailure


class Failure(NamedTuple):
    """Why a probe failed: the value of the label ``reason``, and a text without credentials."""

    reason: ProbeFailure
    text: str
