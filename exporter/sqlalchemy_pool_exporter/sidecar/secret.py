# SPDX-License-Identifier: Apache-2.0
"""Text that logs, errors and representations do not show."""

from __future__ import annotations


class Secret:
    """A text that only `reveal` returns; ``repr``, ``str`` and formatting show ``***``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text; call it where the secret is used, and do not store the result."""
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))
