# SPDX-License-Identifier: Apache-2.0
"""Renders ``config/alerts.yml`` with thresholds into a file of Prometheus' rules.

The source declares each threshold once, under ``thresholds``, and its rules have ``${name}`` in place of the value. The
values are replaced in the text, not in parsed YAML, so that the result keeps the comments and the layout of the source.
So the command reads no YAML, which the plain package cannot: the declarations come with it as JSON, too.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter import bundled
from sqlalchemy_pool_exporter.errors import ThresholdError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = "sqlalchemy-pool.rules.yml"
OPENTELEMETRY = "opentelemetry.rules.yml"  # has no thresholds
THRESHOLDS = "thresholds.json"  # written by tools/generate_rules.py

# As Prometheus writes them: 1h30m, 5m, 250ms.
_DURATION = re.compile(r"(?=.)(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?", re.ASCII)
_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
_LABELS = re.compile(rf"{_LABEL}(, *{_LABEL})*")
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_HEADER = "# Rendered from config/alerts.yml by `sqlalchemy-pool-exporter rules`; change it there."


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value of the rules that users can set; the default determines which kind of value it is."""

    name: str
    default: str
    help: str
    one_of: tuple[float, ...] = ()
    most: float = math.inf

    @property
    def expects(self) -> str:
        """Describe the values that the threshold takes."""
        if self.one_of:
            return f"one of {', '.join(f'{number:g}' for number in self.one_of)}"
        if _number(self.default) is not None:
            return "a number from 0" + f" to {self.most:g}" * math.isfinite(self.most)
        return (
            "a duration such as 90s or 1h30m"
            if _is_duration(self.default)
            else "names of labels, with commas"
        )

    def accepts(self, text: str) -> bool:
        """Return whether ``text`` is a value of this threshold."""
        if _number(self.default) is not None:
            number = _number(text)
            return number is not None and number <= self.most and (not self.one_of or number in self.one_of)
        if _is_duration(self.default):
            # Prometheus accepts 0s as the "for" of an alert, but not as the range of a query.
            return _is_duration(text) and (self.name.endswith("_for") or re.search("[1-9]", text) is not None)
        return _LABELS.fullmatch(text) is not None

    def written(self, text: str) -> str:
        """Return a value as the rules have it; a number of ``one_of`` is formatted as in the exposition's labels."""
        return f"{float(text):g}" if self.one_of else text.strip()


def source() -> str:
    """Return the rules that come with the package, with their thresholds.

    Raises:
        BundleError: the package was not installed from a wheel.
    """
    return bundled.text("alerts.yml")


def bundled_thresholds() -> dict[str, Threshold]:
    """Return the thresholds of ``source()`` by name, in its order.

    Raises:
        BundleError: the package was not installed from a wheel.
    """
    return of_declarations(json.loads(bundled.text(THRESHOLDS)))


def declarations(text: str) -> dict[str, Any]:
    """Return what a source declares of its thresholds; it needs PyYAML."""
    import yaml  # noqa: PLC0415 - tools alone read the source

    declared: dict[str, Any] = yaml.safe_load(text)["thresholds"]
    return declared


def thresholds(text: str) -> dict[str, Threshold]:
    """Return the thresholds of a source by name, in the source's order; it needs PyYAML."""
    return of_declarations(declarations(text))


def of_declarations(declared: Mapping[str, Any]) -> dict[str, Threshold]:
    """Return the thresholds that are declared, by name."""
    return {
        name: Threshold(
            name,
            str(given["value"]),
            given["help"],
            tuple(given.get("one_of", ())),
            given.get("most", math.inf),
        )
        for name, given in declared.items()
    }


def render(
    text: str, values: Mapping[str, str] | None = None, known: Mapping[str, Threshold] | None = None
) -> str:
    """Return the rules of a source with ``values`` for the thresholds they name, and the defaults for the others.

    Args:
        text: the source.
        values: by the name of the threshold.
        known: the thresholds of the source; by default they are read from it, which needs PyYAML.

    Raises:
        ThresholdError: a name is unknown or a value is not accepted; the message lists every fault.
    """
    known, values = thresholds(text) if known is None else known, values or {}
    if faults := [fault for name, value in values.items() if (fault := _fault(known, name, value))]:
        raise ThresholdError(
            "\n  ".join([f"thresholds: {len(faults)} fault{'s' * (len(faults) > 1)}", *faults])
        )
    licence, _, _ = text.partition("\n")
    groups = text[text.index("\ngroups:\n") + 1 :]

    def value_of(match: re.Match[str]) -> str:
        threshold = known[match[1]]
        return threshold.written(values.get(threshold.name, threshold.default))

    return f"{licence}\n{_HEADER}\n{_PLACEHOLDER.sub(value_of, groups)}"


def parse(settings: Sequence[str]) -> dict[str, str]:
    """Return the values of ``NAME=VALUE`` settings by name; the last of each name counts.

    Raises:
        ThresholdError: a setting has no ``=``.
    """
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ThresholdError(f"expected NAME=VALUE, got {setting!r}")
        values[name.strip()] = value.strip()
    return values


def listing(known: Mapping[str, Threshold]) -> str:
    """Return thresholds as lines for a terminal: name, default and meaning."""
    width = max(map(len, known))
    return "".join(f"{name:<{width}}  {known[name].default:<8} {known[name].help}\n" for name in known)


def _fault(known: Mapping[str, Threshold], name: str, value: str) -> str | None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        remedy = f"did you mean {close[0]!r}?" if close else "`rules --list` names them"
        return f"{name}: unknown threshold, {remedy}"
    if not known[name].accepts(value):
        return f"{name}: expected {known[name].expects}, got {value!r}"
    return None


def _number(text: str) -> float | None:
    """Return the number that PromQL would read, or None if the text is no number from 0."""
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None
