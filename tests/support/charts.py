# SPDX-License-Identifier: Apache-2.0
"""Helm itself, as a library, and Kubernetes' schemas, for the tests of the chart."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHART = ROOT / "helm" / "sqlalchemy-pool-exporter"
EXAMPLE = ROOT / "examples" / "helm" / "orders"
OPERATOR = "monitoring.coreos.com/v1"

Manifest = dict[str, Any]


def chart(path: Path = CHART) -> Any:
    """Load a chart."""
    import helm_python  # noqa: PLC0415 - not installed with the oldest dependencies

    return helm_python.Chart.load(path)


def refusal(values: dict[str, Any]) -> str:
    """Return Helm's error for values that it refuses."""
    import helm_python  # noqa: PLC0415 - as above

    try:
        chart().render(values=values, name="pools")
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError(f"Helm accepts {values}")


def lint(path: Path, **options: Any) -> list[str]:
    """Return the warnings and errors of a strict lint of a chart."""
    import helm_python  # noqa: PLC0415 - as above

    report: Any = helm_python.lint(path, strict=True, **options)
    found: list[str] = [message["error"] for message in report["messages"] if message["severity"] > 1]
    return [*found, *report["errors"]]


def render(values: dict[str, Any] | None = None, path: Path = CHART) -> list[Manifest]:
    """Return the manifests of a release called pools in the namespace shop."""
    rendered = chart(path).render(values=values or {}, name="pools", namespace="shop")
    return list(manifests(rendered))


def manifests(rendered: dict[str, str]) -> Iterator[Manifest]:
    """Yield the manifests of what Helm rendered, file by file."""
    for name, text in rendered.items():
        if not name.endswith(".txt"):
            yield from filter(None, yaml.load_all(text, yaml.CSafeLoader))


def of(kind: str, found: list[Manifest]) -> Manifest:
    """Return the one manifest of a kind."""
    (manifest,) = (manifest for manifest in found if manifest["kind"] == kind)
    return manifest


def pod(found: list[Manifest]) -> Any:
    """Return the pod of the deployment."""
    return of("Deployment", found)["spec"]["template"]


def exporter(found: list[Manifest]) -> Any:
    """Return the exporter's container, wherever it is in its pod."""
    spec = pod(found)["spec"]
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    (container,) = (container for container in containers if container["name"] == "sqlalchemy-pool-exporter")
    return container


def kinds(found: list[Manifest]) -> set[str]:
    """Return the kinds of the manifests."""
    return {manifest["kind"] for manifest in found}


def example(directory: Path) -> Path:
    """Copy the example to a directory, with the chart beside it as its dependency, and return it."""
    import helm_python  # noqa: PLC0415 - as above

    for source in (CHART, EXAMPLE):
        shutil.copytree(source, directory / source.relative_to(ROOT))
    copy = directory / EXAMPLE.relative_to(ROOT)
    helm_python.dependency_build(copy)
    return copy


def validate(manifest: Manifest, version: str) -> None:
    """Validate a manifest with the schema of a version of Kubernetes; an unknown field is an error too."""
    _validate(json.dumps(manifest, sort_keys=True), version)


@functools.cache  # many values give the same manifest, and one validation takes 60 ms
def _validate(manifest: str, version: str) -> None:
    import kubernetes_validate  # noqa: PLC0415 - as above

    kubernetes_validate.validate(json.loads(manifest), version, strict=True)
