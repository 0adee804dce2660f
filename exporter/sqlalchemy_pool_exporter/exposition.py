# SPDX-License-Identifier: Apache-2.0
"""Writes metric families in Prometheus' text format or in OpenMetrics.

The output is byte for byte the same as that of prometheus_client's writers. Those examine each label of each sample at
every scrape, which took more than half the time of a scrape of many workers. Here lines are kept with the values that
they show (see ``series``), so only what has changed is written anew. prometheus_client's writers still write families
with features that this project does not use, such as timestamps. Only OpenMetrics has exemplars.
"""

from __future__ import annotations

import gzip
import inspect
import re
from functools import cached_property, lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.samples import Exemplar, Sample

from .pausing import pause
from .series_cy import number, start, texts, texts_with_exemplars

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from .negotiation import Wanted
    from .segment import exemplars as segment
    from .series_cy import Samples

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
_OPENMETRICS_END: Final = "# EOF\n"
_GZIP_LEVEL: Final = 3
# What is joined and encoded between two pauses: all lines at once would keep the GIL for milliseconds.
_BATCH: Final = 100  # of ``Samples``, with up to 19 lines each
_BATCH_OF_OTHERS: Final = 500  # lines
_HEADS: Final = 256  # of families, which are kept
# prometheus_client 0.21, the oldest supported release, has no such option.
_HAS_ESCAPING: Final = "escaping" in inspect.signature(exposition.generate_latest).parameters


class Family(Metric):
    """A family of series. It makes ``samples``, which prometheus_client reads, only on demand."""

    def __init__(self, name: str, documentation: str, kind: str, unit: str = "") -> None:
        # Do not call super().__init__(): it would set samples.
        self.name, self.documentation, self.type, self.unit = name, documentation, kind, unit
        self.groups: list[Samples] = []

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # an attribute of the base class
        """The samples, as objects of prometheus_client."""
        return list(self._samples())

    def _samples(self) -> Iterator[Sample]:
        for group in self.groups:
            exemplars = chain(group.exemplars, repeat(None))
            for (name, labels), value, exemplar in zip(
                group.series.each(), group.values, exemplars, strict=False
            ):
                yield Sample(name, dict(labels), value, None, _exemplar(exemplar))

    @property
    def has_samples(self) -> bool:
        """Whether ``samples`` was made or set. It may have changed since, so it takes precedence over the series."""
        return "samples" in self.__dict__

    def restricted(self, names: Collection[str]) -> list[Sample]:
        """Return the samples with one of these names, which begin with the family's; ``samples`` would keep all."""
        if not any(name.startswith(self.name) for name in names):
            return []
        return [sample for sample in self._samples() if sample.name in names]


def _exemplar(own: segment.Exemplar | None) -> Exemplar | None:
    """Return an exemplar as an object of prometheus_client."""
    if own is None:
        return None
    return Exemplar({"trace_id": own.trace_id, "span_id": own.span_id}, own.value, own.moment)


_Lines = list[tuple[str, float]]


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
            continue
        if isinstance(family, Family) and not family.has_samples:
            samples = family.restricted(names)
        else:
            samples = [sample for sample in family.samples if sample.name in names]
        if samples:
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
        lines = _written(family, texts) if kind else None
        if lines is None:
            parts.append(_foreign(exposition.generate_latest, family, utf8_names=utf8_names).encode())
            continue
        parts.append(_text_head(family.name + suffix, family.documentation, kind))
        parts += lines
    return b"".join(parts)


def openmetrics(families: Iterable[Metric], *, utf8_names: bool = False) -> bytes:
    """Return the families in OpenMetrics 1.0; the arguments are those of ``text()``."""
    parts: list[bytes] = []
    for family in families:
        lines = _written(family, texts_with_exemplars)
        if lines is None:
            written = _foreign(openmetrics_exposition.generate_latest, family, utf8_names=utf8_names)
            parts.append(written.removesuffix(_OPENMETRICS_END).encode())
            continue
        parts.append(_openmetrics_head(family.name, family.documentation, family.type, family.unit))
        parts += lines
    parts.append(_OPENMETRICS_END.encode())
    return b"".join(parts)


@lru_cache(_HEADS)
def _text_head(name: str, documentation: str, kind: str) -> bytes:
    return f"# HELP {name} {documentation.translate(_TEXT_HELP_ESCAPES)}\n# TYPE {name} {kind}\n".encode()


@lru_cache(_HEADS)
def _openmetrics_head(name: str, documentation: str, kind: str, unit: str) -> bytes:
    head = f"# HELP {name} {documentation.translate(_ESCAPES)}\n# TYPE {name} {kind}\n"
    return (head + f"# UNIT {name} {unit}\n" if unit else head).encode()


def _written(family: Metric, write: Callable[[list[Samples]], list[str]]) -> Iterator[bytes] | None:
    """Return the lines of a family, or None if only prometheus_client can write it; ``write`` writes this project's."""
    if isinstance(family, Family) and not family.has_samples:
        return _written_groups(family.groups, write)
    lines = _lines(family)
    return None if lines is None else _written_lines(lines)


def _written_groups(groups: list[Samples], write: Callable[[list[Samples]], list[str]]) -> Iterator[bytes]:
    for at in range(0, len(groups), _BATCH):
        yield "".join(write(groups[at : at + _BATCH])).encode()
        pause()


def _written_lines(lines: _Lines) -> Iterator[bytes]:
    for at in range(0, len(lines), _BATCH_OF_OTHERS):
        batch = [f"{begin}{number(value)}\n" for begin, value in lines[at : at + _BATCH_OF_OTHERS]]
        yield "".join(batch).encode()
        pause()


def _lines(family: Metric) -> _Lines | None:
    """Return the starts of the lines of a family with their values, or None if only prometheus_client can write it."""
    if not _NAME.fullmatch(family.name):
        return None
    lines: _Lines = []
    for sample in family.samples:
        name, labels, value, *more = sample
        if any(extra is not None for extra in more):  # a timestamp, an exemplar, a native histogram
            return None
        if not _NAME.fullmatch(name) or name.endswith(("_created", "_gsum", "_gcount")):
            return None
        if not all(map(_NAME.fullmatch, labels)):
            return None
        lines.append((start(name, labels), value))
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
