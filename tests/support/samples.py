# SPDX-License-Identifier: Apache-2.0
"""The samples of a scrape by name and labels, read from exposition text or from a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sqlalchemy_pool_exporter.exposition import Family
from sqlalchemy_pool_exporter.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

_REPORTS = f"{PREFIX}exhaustion_reports_total"
Key = tuple[str, frozenset[tuple[str, str]]]  # the name, and the labels with their values
Samples = dict[Key, float]


def key(name: str, **labels: str) -> Key:
    """Return the key of ``sqlalchemy_pool_<name>``."""
    return PREFIX + name, frozenset(labels.items())


def read_samples(source: str | CollectorRegistry | Iterable[Metric]) -> Samples:
    """Read the samples of a text in Prometheus' format, of a registry, or of families."""
    if isinstance(source, str):
        families: Iterable[Metric] = text_string_to_metric_families(source)
    elif isinstance(source, CollectorRegistry):
        families = source.collect()
    else:
        families = source
    samples: Samples = {}
    for family in families:
        if isinstance(family, Family) and not family.has_samples:
            # Without the objects of prometheus_client, which take half of the time; thousands of scrapes are read.
            for group in family.groups:
                for (name, labels), value in zip(group.series.each(), group.values, strict=False):
                    samples[name, frozenset(labels.items())] = value
        else:
            samples.update(
                ((sample.name, frozenset(sample.labels.items())), sample.value) for sample in family.samples
            )
    return samples


class RegistrySamples:
    """The samples of one scrape of a registry, without writing and parsing text, which takes time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.samples = read_samples(registry)

    def get(self, name: str, pool: str, **labels: str) -> float | None:
        """Return the value of ``sqlalchemy_pool_<name>`` of a pool, or None if there is no such series."""
        return self.samples.get(key(name, pool=pool, **labels))

    def value(self, name: str, pool: str, **labels: str) -> float:
        """Return the value of a series that must exist."""
        value = self.get(name, pool, **labels)
        assert value is not None, f"no series {name} {labels} of {pool}"
        return value

    def counters(self, pool: str) -> dict[str, float]:
        """Return a pool's counters that are not 0, as ``name`` or ``name.label``, and the counts of its histograms.

        Those by site, the errors by layer and the reports of timeouts follow from others, see ``witness``.
        """
        found = {}
        for (name, labels), value in self.samples.items():
            others = dict(labels)
            is_own = (
                others.pop("pool", None) == pool
                and not others.keys() & {"site", "layer"}
                and name != _REPORTS
            )
            if is_own and name.endswith(("_total", "_count")) and value:
                label = "".join(f".{text}" for text in others.values())
                found[name.removeprefix(PREFIX).removesuffix("_total") + label] = value
        return found

    def errors(self, pool: str) -> dict[str, float]:
        """Return a pool's errors that are not 0, as ``layer.disposition``."""
        return {
            f"{labels['layer']}.{labels['disposition']}": value
            for (name, pairs), value in self.samples.items()
            if name == f"{PREFIX}errors_total" and (labels := dict(pairs))["pool"] == pool and value
        }


class Exposition(RegistrySamples):
    """The samples of one scrape, read back from the text that Prometheus would get."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.text = generate_latest(registry).decode()
        self.samples = read_samples(self.text)


def sqlalchemy_lines(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "sqlalchemy_pool" in line]
