# SPDX-License-Identifier: Apache-2.0
"""The series of one metric and one owner, their values at one moment, and the lines that show both.

A scrape has tens of thousands of lines, and most of them are those of the scrape before. So the lines that belong
together are one text, which is written once and kept with its values: while these stay, a collector adds the same
``Samples`` again. The objects of prometheus_client are made only for a registry that asks for them.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .metrics import BUCKETS

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .metrics import Metric
    from .segment.exemplars import Exemplar

# The values of a metric's own labels: one, or several.
Label = str | tuple[str, ...]

BOUNDS: Final = (*(repr(bound) for bound in BUCKETS), "+Inf")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
# From this number on, Go writes an exponent. Prometheus compares values of the label `le` as text, so write as Go does.
_FIRST_EXPONENT: Final = 1e6
_THOUSAND: Final = 1e3
_MOST_THOUSANDTHS: Final = 1e12
_EXPONENTS: Final = {digits: f"e+{digits - 4:02d}" for digits in range(10, 17)}  # of a number of thousandths


class Series:
    """The series of one metric and one owner; immutable."""

    __slots__ = ("_labels", "is_single", "metric", "own", "template")

    def __init__(
        self, metric: Metric, labels: Mapping[str, str], own: tuple[Label, ...] | None = None
    ) -> None:
        """Name the series.

        Args:
            metric: its name and the names of its labels must need no escaping.
            labels: of the owner; shared, and never changed.
            own: the values of the metric's own labels, if it has such; of a histogram, the bounds of the buckets
                that are shown, if these are not all.
        """
        self.metric, self.own, self._labels = metric, own, labels
        # Whether it is one series, without labels of the metric's own.
        self.is_single = own is None and metric.kind != "histogram"
        starts = [start(name, every) for name, every in self.each()]
        # What the texts of the values are put into; of a single series, what comes before.
        self.template = (
            starts[0] if self.is_single else "".join([f"{one.replace('%', '%%')}%s\n" for one in starts])
        )

    def each(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield the name and the labels of each series, in the order of its values."""
        name, labels = self.metric.name, self._labels
        if self.metric.kind == "histogram":
            for bound in self.own or BOUNDS:
                yield f"{name}_bucket", {**labels, "le": str(bound)}
            yield f"{name}_count", labels
            yield f"{name}_sum", labels
        elif self.own is not None:
            for value in self.own:
                values = (value,) if isinstance(value, str) else value
                every = {**labels, **dict(zip(self.metric.labels, values, strict=True))}
                for suffix in self.metric.suffixes:
                    yield name + suffix, every
        else:
            yield name, labels


class Samples:
    """Series and their values at one moment. Immutable, so scrapes may share it; its text is written once."""

    __slots__ = ("_text", "_with_exemplars", "exemplars", "first", "series", "values")

    def __init__(
        self, series: Series, values: tuple[float, ...], exemplars: tuple[Exemplar | None, ...] = ()
    ) -> None:
        """Keep values.

        Args:
            series: to which they belong.
            values: of each series.
            exemplars: of the first series, the buckets of a histogram; empty if there is none.
        """
        self.series, self.values, self.exemplars = series, values, exemplars
        self.first = values[0] if values else math.nan
        self._text = ""
        self._with_exemplars = ""

    @property
    def text(self) -> str:
        """The lines."""
        return self._text or self._written()

    def _written(self) -> str:
        values, series = self.values, self.series
        if series.is_single:
            self._text = f"{series.template}{number(values[0])}\n"
        else:
            self._text = series.template % tuple([number(value) for value in values])
        return self._text

    def _written_with_exemplars(self) -> str:
        texts = [number(value) for value in self.values]
        for at, exemplar in enumerate(self.exemplars):
            if exemplar is not None:
                texts[at] += exemplar_text(exemplar)
        self._with_exemplars = self.series.template % tuple(texts)
        return self._with_exemplars


def texts_with_exemplars(samples: Sequence[Samples]) -> list[str]:
    """Return the lines of several, as OpenMetrics has them."""
    written: list[str] = []
    one: Samples
    for one in samples:
        if one.exemplars:
            written.append(one._with_exemplars or one._written_with_exemplars())  # noqa: SLF001 - of this module
        else:
            written.append(one._text or one._written())  # noqa: SLF001 - as above
    return written


def exemplar_text(exemplar: Exemplar) -> str:
    """Return what OpenMetrics has behind the value of a bucket: at most 63 characters of labels, of 128."""
    labels = f'span_id="{exemplar.span_id}",trace_id="{exemplar.trace_id}"'
    return f" # {{{labels}}} {number(exemplar.value)} {exemplar.moment!r}"


def texts(samples: Sequence[Samples]) -> list[str]:
    """Return the lines of several."""
    # No call for those that are written, which are nearly all of tens of thousands.
    if cython.compiled:
        written: list[str] = []
        one: Samples
        for one in samples:
            written.append(one._text or one._written())  # noqa: PERF401, SLF001 - see the next line
        return written
    return [each._text or each._written() for each in samples]  # noqa: SLF001 - of this module


def start(name: str, labels: Mapping[str, str]) -> str:
    """Return a line up to the value; the names must need no escaping."""
    pairs = ",".join([f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items())])
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


@cython.cdivision(True)  # noqa: FBT003 - Cython's signature
def number(value: float) -> str:
    """Return a number as Go writes it."""
    double: cython.double = value
    parts: cython.longlong
    if -_FIRST_EXPONENT < double < _FIRST_EXPONENT:
        return repr(value) if type(value) is float else repr(float(value))
    if _FIRST_EXPONENT <= double < _MOST_THOUSANDTHS:
        # For points in time. What has at most 15 digits is the shortest text that is read as the same float.
        parts = int(double * _THOUSAND + 0.5)
        if parts / _THOUSAND == double:
            digits = f"{parts}"
            return f"{digits[0]}.{digits[1:]}".rstrip("0").rstrip(".") + _EXPONENTS[len(digits)]
    return _unusual(float(value))


def _unusual(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0.0 else "-Inf"
    whole, point, fraction = repr(value).partition(".")
    if value < 0.0 or not point or "e" in fraction:
        return repr(value)
    digits = (whole + fraction).rstrip("0")
    return f"{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e+{len(whole) - 1:02d}"
