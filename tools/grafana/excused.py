# SPDX-License-Identifier: Apache-2.0
"""Faults of the dashboards that are known: the only place where one can be excused."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .page import Fault


class Excuse(NamedTuple):
    """Why faults of one kind are left: in these panels of a dashboard, or in all."""

    board: str
    kind: str
    panels: tuple[str, ...]  # none for all
    reason: str

    def covers(self, fault: Fault) -> bool:
        """Return whether a fault is one of these."""
        is_here = (fault.board, fault.kind) == (self.board, self.kind)
        return is_here and (not self.panels or fault.panel in self.panels)


EXCUSES: tuple[Excuse, ...] = (
    Excuse(
        "overview",
        "overrides nothing",
        ("Alerts that fire",),
        "no alert that the staged run brings about has the label of a database",
    ),
    Excuse(
        "fleet",
        "overrides nothing",
        ("Pools that hurt",),
        "no target of the staged run has the labels of a cluster and a namespace",
    ),
    Excuse(
        "database",
        "transforms nothing",
        ("Limits of the server against those of the pools",),
        "its column of the interactive limit is MySQL's, and the staged run has PostgreSQL alone",
    ),
    Excuse(
        "database",
        "overrides nothing",
        ("Limits of the server against those of the pools",),
        "its column of the interactive limit is MySQL's, and the staged run has PostgreSQL alone",
    ),
)


def remaining(faults: Iterable[Fault], excuses: Sequence[Excuse] = EXCUSES) -> list[str]:
    """Return the faults without an excuse, and the excuses that excuse nothing any more."""
    faults = list(faults)
    left = [str(fault) for fault in faults if not any(excuse.covers(fault) for excuse in excuses)]
    for excuse in excuses:
        unneeded = [
            panel
            for panel in excuse.panels or ("any panel",)
            if not any(excuse.covers(fault) and panel in {fault.panel, "any panel"} for fault in faults)
        ]
        left += [f"{excuse.board}: {panel}: {excuse.kind}: needs no excuse any more" for panel in unneeded]
    return left
