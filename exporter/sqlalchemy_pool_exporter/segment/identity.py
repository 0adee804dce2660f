# SPDX-License-Identifier: Apache-2.0
"""Which pools are one: the name that the application gave, or the default name and what else tells pools apart.

Pools of one identity are one set of series: summed within a process and between processes, live or one after another.
The value of the label ``pool`` follows from all identities that are known (see ``label``), and from nothing else: not
from the order in which pools are made, and not from the process.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.metrics import INFO_LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping

_CACHED: Final = 2048
_MOST: Final = 2.0**49  # of a limit


class Variant(NamedTuple):
    """What tells apart pools of one default name; None for a limit that the pool does not have."""

    pool_class: str
    size: float | None
    max_overflow: float | None
    timeout: float | None
    recycle: float | None
    pre_ping: bool


class Identity(NamedTuple):
    """Which pools are one."""

    name: str
    variant: Variant | None = None  # None: the application gave the name


class Description(NamedTuple):
    """What a file says about a pool."""

    identity: Identity
    info: dict[str, str]
    has_overflow: bool


def written(identity: Identity, info: Mapping[str, str], *, has_overflow: bool) -> bytes:
    """Return the text that describes a pool in a file."""
    said: dict[str, Any] = {"pool": identity.name, **info, "overflow": has_overflow}
    if identity.variant is not None:
        said["variant"] = list(identity.variant)
    # As UTF-8: an escape takes three times as much, and a description has about 1,000 bytes.
    return json.dumps(said, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")


@lru_cache(_CACHED)
def read(text: bytes) -> Description:
    """Read a text of ``written()``, padded with zeros.

    Raises:
        SegmentError: the text is damaged.
    """
    try:
        said = json.loads(text.rstrip(b"\0"))
        pool, info = said["pool"], {key: said[key] for key in INFO_LABELS}
        "".join((pool, *info.values())).encode()
        description = Description(Identity(pool, _variant(said)), info, bool(said["overflow"]))
    # RecursionError: thousands of nested brackets.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SegmentError("the description of a pool is not readable") from error
    return description


def _variant(said: dict[str, Any]) -> Variant | None:
    if "variant" not in said:
        return None
    variant = Variant._make(said["variant"])
    variant.pool_class.encode()
    if not all(limit is None or 0.0 <= limit < _MOST for limit in variant[1:]):
        raise ValueError("a limit that is no number")
    return variant
