# SPDX-License-Identifier: Apache-2.0
"""Write the generated files of the chart: ``python -m tools.generate_chart``.

Rules and dashboards are copied, because Helm reads only the chart's directory. The schema of values takes the
exporter's configuration from its models. The README's table comes from the comments in values.yaml.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sqlalchemy_pool_exporter.sidecar.config import Database, DatabaseTLS, Log, Metrics, Web
from sqlalchemy_pool_exporter.sidecar.validation import Section, json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "sqlalchemy-pool-exporter"
BEGIN, END = "<!-- values:start -->\n", "<!-- values:end -->"
# Options that users of the chart cannot set: the chart sets them itself, or they come from a Kubernetes secret.
_NOT_VALUES = {
    "Web": {"listen_address", "config_file"},
    "Database": {"dsn", "dsn_file", "dsn_env"},
}
# The keywords that are copied from a model's schema, in this order.
_KEYWORDS = ("type", "enum", "minimum", "maximum", "pattern", "description")


def files() -> dict[Path, str]:
    """Return the content of every generated file of the chart."""
    config = ROOT / "config"
    rules = (config / "alerts.yml", config / "prometheus" / "rules" / "opentelemetry.rules.yml")
    copies = {CHART / "files" / source.name: source for source in rules} | {
        CHART / "files" / source.relative_to(ROOT): source for source in (ROOT / "dashboards").glob("*.json")
    }
    return {
        **{target: source.read_text() for target, source in copies.items()},
        CHART / "values.schema.json": schema(),
        CHART / "README.md": readme(),
    }


def schema() -> str:
    """Return values.schema.json with the definitions of the exporter's configuration replaced."""
    whole = json.loads((CHART / "values.schema.json").read_text())
    for model in (Web, Log, Metrics, Database, DatabaseTLS):
        whole["$defs"][model.__name__] = definition(model)
    return json.dumps(whole, indent=2) + "\n"


def definition(model: type[Section]) -> dict[str, Any]:
    """Return the schema of a configuration section; it forbids additional properties and omits _NOT_VALUES."""
    left_out = _NOT_VALUES.get(model.__name__, set())
    whole = json_schema(model)
    properties = {
        name: _property(schema) for name, schema in whole["properties"].items() if name not in left_out
    }
    required = [name for name in whole.get("required", []) if name not in left_out]
    if model is Database:
        properties["dsnSecret"] = {"$ref": "#/$defs/secretKey"}
        required.append("dsnSecret")
    closed = {"type": "object", "additionalProperties": False, "properties": properties}
    return closed | ({"required": required} if required else {})


def _property(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:  # an option that may be null; users of the chart omit it instead
        schema = {**next(arm for arm in schema["anyOf"] if arm.get("type") != "null"), **schema}
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    found = {key: schema[key] for key in _KEYWORDS if key in schema}
    if "enum" in found:
        del found["type"]
    if "items" in schema:
        found["items"] = _property(schema["items"])
    return found


def readme() -> str:
    """Return the chart's README with the table of values replaced."""
    before, _, rest = (CHART / "README.md").read_text().partition(BEGIN)
    rows = "".join(
        f"| `{key}` | {comment} | {_default(value)} |\n"
        for key, comment, value in values((CHART / "values.yaml").read_text())
    )
    return f"{before}{BEGIN}| value | meaning | default |\n| --- | --- | --- |\n{rows}{END}{rest.partition(END)[2]}"


def values(text: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the values that have a comment: dotted key, comment, default."""
    lines = text.splitlines()

    def comment(line: int) -> str:
        above: list[str] = []
        while line and lines[line - 1].lstrip().startswith("# "):
            line -= 1
            above.insert(0, lines[line].lstrip().removeprefix("# "))
        return " ".join(above)

    def walk(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, str, Any]]:
        for key, value in node.value:
            name = f"{path}{key.value}"
            said = comment(key.start_mark.line)
            if said:
                yield name, said, yaml.safe_load(yaml.serialize(value))
            elif isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, f"{name}.")
            else:
                raise ValueError(f"values.yaml: {name} has no comment")

    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - for the type checker
    yield from walk(root, "")


def _default(value: Any) -> str:
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
