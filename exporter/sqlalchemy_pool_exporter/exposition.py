# SPDX-License-Identifier: Apache-2.0
"""Writes metric families in Prometheus' text format or in OpenMetrics.

The output is byte for byte the same as that of prometheus_client's writers. Those examine each label of each sample at
every scrape, which took more than half the time of a scrape of many workers. Here a series keeps the start of its line,
so if a collector keeps its series, only the values are written anew. prometheus_client's writers still write families
with features that this project does not use, such as exemplars.
"""

from __future__ import annotations

import gzip
import inspect
import math
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.samples import Sample

from .pausing import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .negotiation import Wanted

# OpenMetrics type → text-format type and name suffix. The text format reorders the samples of all other types, so
# prometheus_client writes those.
_TEXT_TYPES: Final = {
    "counter": ("counter", "_total"),
    "gauge": ("gauge", ""),
    "histogram": ("histogram", ""),
    "info": ("gauge", "_info"),
    "stateset": ("gauge", ""),
    "summary": ("summary", ""),
    "unknown": ("untyped", ""),
}
# A name of a family, sample or label that needs no escaping. prometheus_client writes the others.
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_TEXT_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
# From this number on, Go writes an exponent. Prometheus compares values of the label `le` as text, so write as Go does.
_FIRST_EXPONENT: Final = 1e6
_OPENMETRICS_END: Final = "# EOF\n"
_GZIP_LEVEL: Final = 3
_BATCH: Final = 500  # lines, between two pauses
# prometheus_client 0.21, the oldest supported release, has no such option.
_HAS_ESCAPING: Final = "escaping" in inspect.signature(exposition.generate_latest).parameters


class Series(NamedTuple):
    """The name and the labels of a sample, and the start of its line up to the value."""

    name: str
    labels: Mapping[str, str]
    start: str

    @classmethod
    def of(cls, name: str, labels: Mapping[str, str]) -> Series:
        """Return the series with a name and labels; the names must need no escaping."""
        pairs = ",".join([f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items())])
        return cls(name, labels, f"{name}{{{pairs}}} " if pairs else f"{name} ")


class Family(Metric):
    """A family of series. It makes ``samples``, which prometheus_client reads, only on demand."""

    def __init__(self, name: str, documentation: str, kind: str, unit: str = "") -> None:
        # Do not call super().__init__(): it would set samples.
        self.name, self.documentation, self.type, self.unit = name, documentation, kind, unit
        # Two lists instead of one list of pairs: the garbage collector would track tens of thousands of pairs.
        self.series: list[Series] = []
        self.values: list[float] = []

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # an attribute of the base class
        """The samples, as objects of prometheus_client."""
        return [
            Sample(series.name, dict(series.labels), value)
            for series, value in zip(self.series, self.values, strict=True)
        ]

    @property
    def has_samples(self) -> bool:
        """Whether ``samples`` was made or set. It may have changed since, so it takes precedence over the series."""
        return "samples" in self.__dict__

    def restricted(self, names: Collection[str]) -> Family:
        """Return the part of the family whose samples have one of these names."""
        part = Family(self.name, self.documentation, self.type, self.unit)
        for series, value in zip(self.series, self.values, strict=True):
            if series.name in names:
                part.series.append(series)
                part.values.append(value)
        return part


_Lines = Iterable[tuple[Series, float]]


def write(families: Iterable[Metric], wanted: Wanted) -> bytes:
    """Return the body of the answer to a scrape: the wanted families in the wanted format, compressed if wanted."""
    shown = _restricted(families, wanted.names) if wanted.names else families
    writer = openmetrics if wanted.format.kind == "openmetrics" else text
    body = writer(shown, utf8_names=wanted.format.utf8_names)
    # mtime=0, so that equal expositions are equal bytes.
    return gzip.compress(body, _GZIP_LEVEL, mtime=0) if wanted.gzipped else body


def _restricted(families: Iterable[Metric], names: Collection[str]) -> Iterator[Metric]:
    """Yield the families with these names, and of the others the samples with these names."""
    for family in families:
        if family.name in names:
            yield family
        elif isinstance(family, Family) and not family.has_samples:
            if (own := family.restricted(names)).series:
                yield own
        elif samples := [sample for sample in family.samples if sample.name in names]:
            part = Metric(family.name, family.documentation, family.type, family.unit)
            part.samples = samples
            yield part


def text(families: Iterable[Metric], *, utf8_names: bool = False) -> bytes:
    """Return the families in Prometheus' text format.

    Args:
        families: of this project or of prometheus_client.
        utf8_names: put names that have other characters than letters, digits and underscores in quotes (version 1.0.0
            of the format), instead of replacing those characters by underscores (0.0.4).
    """
    parts: list[bytes] = []
    for family in families:
        kind, suffix = _TEXT_TYPES.get(family.type, ("", ""))
        lines = _lines(family) if kind else None
        if lines is None:
            parts.append(_foreign(exposition.generate_latest, family, utf8_names=utf8_names).encode())
            continue
        name = family.name + suffix
        head = f"# HELP {name} {family.documentation.translate(_TEXT_HELP_ESCAPES)}\n# TYPE {name} {kind}\n"
        parts.append(head.encode())
        parts += _written(lines)
    return b"".join(parts)


def openmetrics(families: Iterable[Metric], *, utf8_names: bool = False) -> bytes:
    """Return the families in OpenMetrics 1.0; the arguments are those of ``text()``."""
    parts: list[bytes] = []
    for family in families:
        lines = _lines(family)
        if lines is None:
            written = _foreign(openmetrics_exposition.generate_latest, family, utf8_names=utf8_names)
            parts.append(written.removesuffix(_OPENMETRICS_END).encode())
            continue
        name = family.name
        head = f"# HELP {name} {family.documentation.translate(_ESCAPES)}\n# TYPE {name} {family.type}\n"
        if family.unit:
            head += f"# UNIT {name} {family.unit}\n"
        parts.append(head.encode())
        parts += _written(lines)
    parts.append(_OPENMETRICS_END.encode())
    return b"".join(parts)


def _written(lines: _Lines) -> Iterator[bytes]:
    remaining = iter(lines)
    # In batches, because joining and encoding a hundred thousand lines at once would keep the GIL for milliseconds.
    # No call of number() for short floats: nearly all of tens of thousands of values are short.
    while batch := [
        f"{start}{value!r}\n"
        if -_FIRST_EXPONENT < value < _FIRST_EXPONENT and type(value) is float
        else f"{start}{number(value)}\n"
        for (_, _, start), value in islice(remaining, _BATCH)
    ]:
        yield "".join(batch).encode()
        pause()


def number(value: float) -> str:
    """Return a number as Go writes it."""
    value = float(value)
    if -_FIRST_EXPONENT < value < _FIRST_EXPONENT:
        return repr(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0.0 else "-Inf"
    whole, point, fraction = repr(value).partition(".")
    if value < 0.0 or not point or "e" in fraction:
        return repr(value)
    digits = (whole + fraction).rstrip("0")
    return f"{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e+{len(whole) - 1:02d}"


def _lines(family: Metric) -> _Lines | None:
    """Return the series of a family with their values, or None if only prometheus_client can write it."""
    if isinstance(family, Family) and not family.has_samples:
        return zip(family.series, family.values, strict=True)
    if not _NAME.fullmatch(family.name):
        return None
    lines: list[tuple[Series, float]] = []
    for sample in family.samples:
        name, labels, value, *more = sample
        if any(extra is not None for extra in more):  # a timestamp, an exemplar, a native histogram
            return None
        if not _NAME.fullmatch(name) or name.endswith(("_created", "_gsum", "_gcount")):
            return None
        if not all(map(_NAME.fullmatch, labels)):
            return None
        lines.append((Series.of(name, labels), value))
    return lines


class _OneFamily:
    """One family as a registry, because prometheus_client's writers take a registry."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield self._family


def _foreign(writer: Callable[..., bytes], family: Metric, *, utf8_names: bool) -> str:
    """Return a family as written by one of prometheus_client's writers."""
    options = {"escaping": "allow-utf-8"} if utf8_names and _HAS_ESCAPING else {}
    return writer(_OneFamily(family), **options).decode()
