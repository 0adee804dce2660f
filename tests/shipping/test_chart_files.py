# SPDX-License-Identifier: Apache-2.0
"""The chart's files: its version, its schema, and the generated and copied files."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import yaml

from tests.support.charts import CHART, EXAMPLE, chart, exporter, render
from tests.support.paths import ROOT
from tools.generate_chart import files, values

pytestmark = pytest.mark.newest


def test_version() -> None:
    """The chart and the image that it runs have the package's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (version, version) == (chart().version, chart().metadata["appVersion"])
    assert exporter(render())["image"].endswith(f":{version}")


def test_generated_files() -> None:
    """The generated rules, dashboards, README and schema are up to date; `make chart` updates them."""
    assert [] == [
        str(path) for path, content in files().items() if not path.exists() or content != path.read_text()
    ]
    copies = {path for path in (CHART / "files").rglob("*") if path.is_file()}
    assert copies <= set(files())


def test_every_value_is_in_the_schema() -> None:
    """The schema has every documented value and no other, and allows no additional properties."""
    schema = chart().schema
    known: set[str] = set()

    def walk(node: dict[str, Any], path: str) -> None:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if "properties" in node:
            assert node["additionalProperties"] is False, path
            for name, inner in node["properties"].items():
                known.add(f"{path}{name}")
                walk(inner, f"{path}{name}.")

    walk(schema, "")
    documented = {name for name, _, _ in values((CHART / "values.yaml").read_text())}
    assert set() == documented - known
    unsaid = {
        name
        for name in known
        if not any(f"{name}.".startswith(f"{said}.") or said.startswith(f"{name}.") for said in documented)
    }
    assert {"global", "enabled"} == unsaid


def test_example_values() -> None:
    """The example depends on the chart of this repository, at its current version."""
    dependency = yaml.safe_load((EXAMPLE / "Chart.yaml").read_text())["dependencies"][0]
    assert (EXAMPLE / dependency["repository"].removeprefix("file://")).resolve() == CHART
    assert f"^{chart().version}" == dependency["version"]
