# SPDX-License-Identifier: Apache-2.0
"""The chart's manifests are valid and safe, and their configuration is one that the exporter accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter.cli import main
from tests.support.chart_values import EXTRAS, matrix
from tests.support.charts import (
    CHART,
    OPERATOR,
    chart,
    exporter,
    kinds,
    lint,
    of,
    pod,
    render,
    validate,
)
from tests.support.ports import free_port
from tests.support.sidecar import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest

# The oldest version that Chart.yaml allows, and the newest that has a schema.
VERSIONS = ("1.25", "1.37")
NATIVE_SINCE = "1.29"


@matrix
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_kubernetes(given: dict[str, Any], version: str) -> None:
    """Every manifest is valid for the oldest and the newest Kubernetes; the operator's have tests of their own."""
    for manifest in render(given):
        if manifest["apiVersion"] != OPERATOR:
            validate(manifest, version)


@matrix
def test_lint(given: dict[str, Any]) -> None:
    """A strict Helm lint finds no fault."""
    assert [] == lint(CHART, values=given)


@pytest.mark.parametrize(
    ("native", "version"), [(True, NATIVE_SINCE), (True, "1.37"), (False, "1.25"), (False, "1.37")]
)
def test_example_is_kubernetes(orders: Path, native: bool, version: str) -> None:
    """The example passes the lint, and is valid for the Kubernetes versions of both kinds of sidecar."""
    given = {"sqlalchemy-pool-exporter": {"sidecar": {"native": native}}}
    assert [] == lint(orders, values=given, with_subcharts=True)
    for manifest in render(given, orders):
        if manifest["apiVersion"] != OPERATOR:
            validate(manifest, version)


def test_validation_can_fail() -> None:
    """The validation finds a field that a version does not know: a native sidecar in the oldest Kubernetes."""
    deployment = of("Deployment", render())
    deployment["spec"]["template"]["spec"]["containers"][0]["restartPolicy"] = "Always"
    validate(deployment, NATIVE_SINCE)
    with pytest.raises(Exception, match="restartPolicy"):
        validate(deployment, "1.25")


def test_what_there_is_by_default() -> None:
    """By default the chart makes a deployment with service, account, configuration and test, and nothing else."""
    assert {"Deployment", "Service", "ServiceAccount", "ConfigMap", "Pod"} == kinds(render())


@pytest.mark.parametrize("given", [{}, EXTRAS], ids=["nothing", "everything"])
def test_security_defaults(given: dict[str, Any]) -> None:
    """The exporter's pod and that of `helm test` run as non-root and read-only, without capabilities or a token."""
    found = render(given)
    hooked = of("Pod", found)
    for spec in (pod(found)["spec"], hooked["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items() <= spec[
            "securityContext"
        ].items()
    for container in (exporter(found), hooked["spec"]["containers"][0]):
        assert {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        } == container["securityContext"]
        assert {"requests", "limits"} == set(container["resources"])


@matrix
def test_configuration(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exporter accepts the rendered configuration."""
    (rendered,) = (
        found["data"]["exporter.yaml"] for found in render(given) if "exporter.yaml" in found.get("data", {})
    )
    (tmp_path / "web").mkdir()
    for name in ("web.yaml", "w.yml"):
        (tmp_path / "web" / name).write_text("")
    (tmp_path / "dsn").mkdir()
    for database in yaml.safe_load(rendered).get("databases", []):  # in secrets, which the exporter reads
        (tmp_path / "dsn" / database["name"]).write_text("postgresql://exporter@db.example/orders")
    path = tmp_path / "exporter.yaml"
    path.write_text(rendered.replace("/etc/sqlalchemy-pool-exporter", str(tmp_path)))
    assert 0 == main(["check-config", "--config", str(path)])
    assert "" == capsys.readouterr().err


def test_databases_are_mounted() -> None:
    """Each database's DSN is mounted as a file from the secret that the values name."""
    found = render(EXTRAS)
    (config,) = (entry for entry in found if "exporter.yaml" in entry.get("data", {}))
    listed = yaml.safe_load(config["data"]["exporter.yaml"])["databases"]
    mounts = {mount["name"]: mount["mountPath"] for mount in exporter(found)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(found)["spec"]["volumes"]}
    assert set(mounts) == set(volumes)
    sources = volumes["sqlalchemy-pool-exporter-dsn"]["projected"]["sources"]
    there = {
        f"{mounts['sqlalchemy-pool-exporter-dsn']}/{source['secret']['items'][0]['path']}"
        for source in sources
    }
    assert there == {database["dsn_file"] for database in listed}
    assert {"orders-db"} == {source["secret"]["name"] for source in sources}


def test_changed_configuration_restarts_the_pods(orders: Path) -> None:
    """A change of the exporter's configuration changes an annotation of the pod, so that Kubernetes restarts it."""

    def annotations(given: dict[str, Any], path: Path) -> Any:
        return pod(render(given, path))["metadata"]["annotations"]

    changed = {"config": {"log": {"level": "debug"}}}
    for one, other in (
        (annotations({}, CHART), annotations(changed, CHART)),
        (annotations({}, orders), annotations({"sqlalchemy-pool-exporter": changed}, orders)),
    ):
        assert one.keys() == other.keys()
        assert one != other
    assert annotations({}, orders) == annotations({"replicas": 5}, orders)


@pytest.mark.parametrize(
    ("guarded", "probe"), [({}, "httpGet"), ({"web": {"configSecret": {"name": "web"}}}, "exec")]
)
def test_probes(guarded: dict[str, Any], probe: str) -> None:
    """Kubernetes probes over HTTP, unless TLS or a password is set: then the container runs its health check."""
    port = free_port()
    container = exporter(render({"containerPort": port, **guarded}))
    assert probe in container["livenessProbe"]
    assert probe in container["readinessProbe"]
    if probe == "exec":
        name, *arguments = container["livenessProbe"]["exec"]["command"]
        assert ("sqlalchemy-pool-exporter", "healthcheck") == (name, arguments[0])
        said = run(*arguments)
        assert (1, f"no answer from ':{port}'") == (said.returncode, said.stderr.split(": ")[1])


def test_network_policy() -> None:
    """The policy admits the given peers and `helm test` to the metrics port, and limits egress only if asked to."""
    policy = of("NetworkPolicy", render({"networkPolicy": {"enabled": True}}))["spec"]
    assert (["Ingress"], [{"ports": [{"port": "pool-metrics", "protocol": "TCP"}]}]) == (
        policy["policyTypes"],
        policy["ingress"],
    )
    policy = of("NetworkPolicy", render(EXTRAS))["spec"]
    assert ["Ingress", "Egress"] == policy["policyTypes"]
    *told, tester = policy["ingress"][0]["from"]
    assert EXTRAS["networkPolicy"]["from"] == told
    labels = of("Pod", render(EXTRAS))["metadata"]["labels"]
    assert tester["podSelector"]["matchLabels"].items() <= labels.items()
    policy = of("NetworkPolicy", render({**EXTRAS, "tests": {"enabled": False}}))["spec"]
    assert EXTRAS["networkPolicy"]["from"] == policy["ingress"][0]["from"]


def test_notes() -> None:
    """The notes name the next step, for both modes."""
    notes = "sqlalchemy-pool-exporter/templates/NOTES.txt"
    assert "helm --namespace shop test pools" in chart().render(name="pools", namespace="shop")[notes]
    assert "set serviceMonitor.enabled" in chart().render(name="pools", namespace="shop")[notes]
    said = chart().render(values={"serviceMonitor": {"enabled": True}}, name="pools", namespace="shop")[notes]
    assert "Nothing scrapes it yet" not in said
    said = chart().render(values={"mode": "sidecar"}, name="pools", namespace="shop")[notes]
    assert "label sqlalchemy-pool-exporter=pools" in said
    assert "podMonitor.enabled" in said
