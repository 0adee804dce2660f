# SPDX-License-Identifier: Apache-2.0
"""``Accept`` and ``Accept-Encoding`` → format and encoding of an exposition (RFC 9110, section 12.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Format = Literal["text", "openmetrics"]

CONTENT_TYPES: Final[Mapping[Format, str]] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}


class _Offer(NamedTuple):
    format: Format
    media_type: str
    version: str


# The first is what anybody gets who does not care, or cannot be pleased: exporters answer no scrape with 406.
_OFFERS = (
    _Offer("text", "text/plain", "0.0.4"),
    _Offer("openmetrics", "application/openmetrics-text", "1.0.0"),
)


def choose_format(accept: str) -> Format:
    """Return the format that ``accept`` prefers: the highest q, then the one it names more exactly."""
    ranges = list(_ranges(accept))
    best = max(_OFFERS, key=lambda offer: _preference(offer, ranges))  # the first, of equal ones
    return best.format


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether gzip is welcome, and no less than no encoding at all."""
    quality = {coding: q for coding, _, q in _ranges(accept_encoding)}
    gzip = quality.get("gzip", quality.get("*", 0.0))
    return gzip > 0 and gzip >= quality.get("identity", 0.0)


def _preference(offer: _Offer, ranges: list[tuple[str, str, float]]) -> tuple[float, int]:
    """Return q and exactness of the range that fits ``offer`` best."""
    fits = [(0, 0.0)]
    for media_type, version, q in ranges:
        if media_type == offer.media_type and version == offer.version:
            fits.append((4, q))
        elif media_type == offer.media_type and not version:
            fits.append((3, q))
        elif media_type == offer.media_type.partition("/")[0] + "/*":
            fits.append((2, q))
        elif media_type == "*/*":
            fits.append((1, q))
    exactness, q = max(fits)
    return q, exactness if q else 0


def _ranges(header: str) -> Iterator[tuple[str, str, float]]:
    """Yield (name, version or "", q) of each element; one with a q that is no number is left out."""
    for element in header.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            q = float(values.get("q", "1"))
        except ValueError:
            continue
        if name and 0 <= q <= 1:
            yield name, values.get("version", "").strip('"'), q
