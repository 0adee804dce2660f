# SPDX-License-Identifier: Apache-2.0
"""From metric families to what a scrape gets: Prometheus' text format, and OpenMetrics.

Byte for byte what prometheus_client's writers make of the same families. Theirs looks at each label of each sample
anew, and for many workers that was more than half of a scrape; here a series knows how its line begins, and who keeps
series from scrape to scrape has nothing left to write but the numbers.
"""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# As what the text format shows the types of OpenMetrics, with what behind the name; for any other type its samples
# are not in the order they are written in.
_TEXT_TYPES: Final = {
    "counter": ("counter", "_total"),
    "gauge": ("gauge", ""),
    "histogram": ("histogram", ""),
    "info": ("gauge", "_info"),
    "stateset": ("gauge", ""),
    "summary": ("summary", ""),
    "unknown": ("untyped", ""),
}
# Of families, samples and labels. Others (a recording rule's have colons) are changed on their way out.
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_TEXT_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
# From here on Go writes an exponent, and Prometheus compares the texts of `le`.
_FIRST_EXPONENT: Final = 1e6


class Series(NamedTuple):
    """The name and the labels of a sample, and how its line begins."""

    name: str
    labels: Mapping[str, str]
    start: str

    @classmethod
    def of(cls, name: str, labels: Mapping[str, str]) -> Series:
        """Return the series of a name and its labels, both of which are taken as valid."""
        pairs = ",".join([f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items())])
        return cls(name, labels, f"{name}{{{pairs}}} " if pairs else f"{name} ")


class Family(Metric):
    """A family of series; its samples, as others know them, are made when somebody asks for them."""

    def __init__(self, name: str, documentation: str, kind: str, unit: str = "") -> None:
        # Not what is inherited: that would give it samples.
        self.name, self.documentation, self.type, self.unit = name, documentation, kind, unit
        # Two lists and not one of pairs: tens of thousands of those are work for the garbage collector.
        self.series: list[Series] = []
        self.values: list[float] = []

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # it can be set, like what it overrides
        """What prometheus_client knows of it."""
        return [Sample(series.name, dict(series.labels), value) for series, value in self.lines()]

    def lines(self) -> Iterable[tuple[Series, float]]:
        """Return each series with its value."""
        return zip(self.series, self.values, strict=True)


def text(families: Iterable[Metric]) -> bytes:
    """Return the families in Prometheus' text format 0.0.4."""
    parts: list[str] = []
    for family in families:
        kind, suffix = _TEXT_TYPES.get(family.type, ("", ""))
        lines = _lines(family) if kind else None
        if lines is None:
            parts.append(exposition.generate_latest(_alone(family)).decode())
            continue
        name = family.name + suffix
        parts.append(
            f"# HELP {name} {family.documentation.translate(_TEXT_HELP_ESCAPES)}\n# TYPE {name} {kind}\n"
        )
        parts += _written(lines)
    return "".join(parts).encode()


def openmetrics(families: Iterable[Metric]) -> bytes:
    """Return the families in OpenMetrics 1.0."""
    parts: list[str] = []
    for family in families:
        lines = _lines(family)
        if lines is None:
            alone = openmetrics_exposition.generate_latest(_alone(family)).decode()
            parts.append(alone.removesuffix("# EOF\n"))
            continue
        name = family.name
        parts.append(
            f"# HELP {name} {family.documentation.translate(_ESCAPES)}\n# TYPE {name} {family.type}\n"
        )
        if family.unit:
            parts.append(f"# UNIT {name} {family.unit}\n")
        parts += _written(lines)
    parts.append("# EOF\n")
    return "".join(parts).encode()


def _written(lines: Iterable[tuple[Series, float]]) -> list[str]:
    # Nearly all numbers are short ones, of which there are tens of thousands: no call for those.
    return [
        f"{start}{value!r}\n"
        if -_FIRST_EXPONENT < value < _FIRST_EXPONENT and type(value) is float
        else f"{start}{number(value)}\n"
        for (_, _, start), value in lines
    ]


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


def _lines(family: Metric) -> Iterable[tuple[Series, float]] | None:
    """Return the lines of a family, or None if there is something to it that this project does not export."""
    if isinstance(family, Family):
        return family.lines()
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


class _Alone:
    """One family, in the shape that prometheus_client's writers ask for."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield self._family


def _alone(family: Metric) -> Any:  # the writers say that they take registries only
    return _Alone(family)
