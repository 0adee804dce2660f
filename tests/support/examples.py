# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation."""

from __future__ import annotations

from tests.support.paths import ROOT


def example(heading: str) -> str:
    """Return the Python code below a heading of docs/holders.md."""
    page = (ROOT / "docs" / "holders.md").read_text("utf-8")
    _, found, below = page.partition(f"## {heading}\n")
    assert found, f"no heading {heading!r}"
    _, _, code = below.partition("```python\n")
    return code.partition("```")[0]
