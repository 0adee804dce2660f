# SPDX-License-Identifier: Apache-2.0
"""``Accept``, ``Accept-Encoding`` and ``name[]`` → format, compression and families (RFC 9110, section 12.5).

The endpoints of the application and of the sidecar all use this module, so that they answer the same request alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_UTF8: Final = "allow-utf-8"


class Format(NamedTuple):
    """A format of the exposition, as its content type names it."""

    kind: Literal["text", "openmetrics"]
    media_type: str
    version: str
    # Whether names may have any characters, in quotes. If not, such characters become underscores.
    utf8_names: bool = False

    @property
    def content_type(self) -> str:
        """The value of the header ``Content-Type``."""
        escaping = f"; escaping={_UTF8}" if self.utf8_names else ""
        return f"{self.media_type}; version={self.version}; charset=utf-8{escaping}"


_TEXT: Final = Format("text", "text/plain", "0.0.4")
# The text format with names in quotes, only for clients that ask for this version, because older ones cannot read it.
_TEXT_1: Final = Format("text", "text/plain", "1.0.0")
_OPENMETRICS: Final = Format("openmetrics", "application/openmetrics-text", "1.0.0")
# The first one wins among equals, and if none is acceptable: exporters do not answer a scrape with 406.
_OFFERS: Final = (_TEXT, _TEXT_1, _OPENMETRICS)


class Wanted(NamedTuple):
    """What a scrape asks for. Scrapes that ask for the same can share an answer."""

    format: Format
    names: frozenset[str]  # of families or samples; empty: all of them
    gzipped: bool

    @classmethod
    def of(cls, accept: str, accept_encoding: str, names: Iterable[str] = ()) -> Wanted:
        """Return what a request asks for.

        Args:
            accept: the header ``Accept``; several are joined by commas.
            accept_encoding: the header ``Accept-Encoding``; likewise.
            names: values of the query parameter ``name[]``; empty ones are ignored.
        """
        return cls(choose_format(accept), frozenset(filter(None, names)), accepts_gzip(accept_encoding))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        encoding = {"Content-Encoding": "gzip"} if self.gzipped else {}
        return {"Content-Type": self.format.content_type, "Vary": "Accept, Accept-Encoding", **encoding}


class _Range(NamedTuple):
    """One element of an ``Accept`` header, in lower case."""

    name: str
    version: str  # empty: any
    escaping: str
    q: float


def choose_format(accept: str) -> Format:
    """Return the format that ``accept`` prefers: the one with the highest q, then the most exact match."""
    ranges = list(_ranges(accept))
    fits = [_best_fit(offer, ranges) for offer in _OFFERS]
    preferences = [(fit.q, exactness if fit.q else 0) for exactness, fit in fits]
    best = max(range(len(_OFFERS)), key=preferences.__getitem__)  # the first of equal ones
    offer, (_, fit) = _OFFERS[best], fits[best]
    return offer._replace(utf8_names=fit.escaping == _UTF8 and offer != _TEXT)


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether gzip is accepted with at least the q of no encoding."""
    quality = {coding: q for coding, _, _, q in _ranges(accept_encoding)}
    gzip = quality.get("gzip", quality.get("*", 0.0))
    return gzip > 0 and gzip >= quality.get("identity", 0.0)


def _best_fit(offer: Format, ranges: list[_Range]) -> tuple[int, _Range]:
    """Return the range that matches ``offer`` most exactly, and how exactly: from 4 to 1, or 0 for no match."""
    fits = [(0, _Range("", "", "", 0.0))]
    for range_ in ranges:
        if (range_.name, range_.version) == (offer.media_type, offer.version):
            fits.append((4, range_))
        elif offer == _TEXT_1:
            continue
        elif range_.name == offer.media_type and not range_.version:
            fits.append((3, range_))
        elif range_.name == offer.media_type.partition("/")[0] + "/*":
            fits.append((2, range_))
        elif range_.name == "*/*":
            fits.append((1, range_))
    return max(fits, key=lambda fit: (fit[0], fit[1].q))


def _ranges(header: str) -> Iterator[_Range]:
    """Yield the elements of a header; skip elements whose q is not a number from 0 to 1."""
    for element in header.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            q = float(values.get("q", "1"))
        except ValueError:
            continue
        if name and 0 <= q <= 1:
            version, escaping = (values.get(key, "").strip('"') for key in ("version", "escaping"))
            yield _Range(name, version, escaping, q)
