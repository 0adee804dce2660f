# SPDX-License-Identifier: Apache-2.0
"""The value of the label ``pool`` of each identity, from all identities that are known.

A name that the application gave is the label. So is a default name, as long as all pools that have it are alike. If
they differ, the label says in what: first in their class, then, among those of one class, in size and overflow, then in
the other limits: ``orders@db-NullPool``, ``orders@db-5+10``, ``orders@db-timeout=5``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .identity import Identity, Variant


def labels(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return the label of each identity. The order of the identities does not matter."""
    found = set(identities)
    by_name: dict[str, set[Variant]] = defaultdict(set)
    for identity in found:
        if identity.variant is not None:
            by_name[identity.name].add(identity.variant)
    every = {
        identity: identity.name
        + (_suffix(identity.variant, by_name[identity.name]) if identity.variant else "")
        for identity in found
    }
    return every | dict(_told_apart(every))


def _told_apart(every: dict[Identity, str]) -> Iterator[tuple[Identity, str]]:
    """Yield other labels for names with a suffix that are the name of another pool."""
    if all(label == identity.name for identity, label in every.items()):
        return
    names = {identity.name for identity in every}
    with_suffix = Counter(label for identity, label in every.items() if label != identity.name)
    for identity, label in every.items():
        if label != identity.name and (label in names or with_suffix[label] > 1):
            yield identity, f"{label}-{crc32(repr(identity).encode('utf-8', 'replace')):08x}"


def _suffix(variant: Variant, variants: set[Variant]) -> str:
    suffix = ""
    for tell in _DIFFERENCES:
        if len({tell(other) for other in variants}) > 1:
            suffix += f"-{tell(variant)}"
            variants = {other for other in variants if tell(other) == tell(variant)}
    return suffix


def _limits(variant: Variant) -> str:
    if variant.size is None and variant.max_overflow is None:
        return "unlimited"
    return f"{_number(variant.size, 'unlimited')}+{_number(variant.max_overflow, 'unlimited')}"


def _number(limit: float | None, absent: str) -> str:
    return absent if limit is None else repr(float(limit)).removesuffix(".0")


_DIFFERENCES: Final[tuple[Callable[[Variant], str], ...]] = (
    lambda variant: variant.pool_class,
    _limits,
    lambda variant: f"timeout={_number(variant.timeout, 'none')}",
    lambda variant: f"recycle={_number(variant.recycle, 'off')}",
    lambda variant: f"pre_ping={'on' if variant.pre_ping else 'off'}",
)
