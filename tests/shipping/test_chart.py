# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered by Helm over many values: what the cluster, Prometheus, Grafana and the exporter make of it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.charts import (
    CHART,
    EXAMPLE,
    OPERATOR,
    chart,
    example,
    kinds,
    lint,
    of,
    refusal,
    render,
    validate,
)
from tests.support.paths import ROOT
from tests.support.sidecar import run
from tools.generate_chart import files, values

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.charts import Manifest

pytestmark = pytest.mark.newest

# The oldest that Chart.yaml allows, and the newest that there is a schema of.
VERSIONS = ("1.25", "1.37")
NATIVE_SINCE = "1.29"

DATABASE = {
    "name": "orders",
    "dsnSecret": {"name": "orders-db", "key": "dsn"},
    "pools": ["orders", "billing"],
}
TLS = {"ca": {"configMap": {"name": "ca", "key": "ca.crt"}}}
MONITOR = {
    "enabled": True,
    "namespace": "monitoring",
    "additionalLabels": {"release": "prometheus"},
    "annotations": {"owner": "sre"},
    "jobLabel": "app.kubernetes.io/name",
    "interval": "15s",
    "scrapeTimeout": "10s",
    "scheme": "https",
    "tlsConfig": TLS,
    "basicAuth": {
        "username": {"name": "scrape", "key": "user"},
        "password": {"name": "scrape", "key": "password"},
    },
    "honorLabels": True,
    "sampleLimit": 5000,
    "relabelings": [{"targetLabel": "team", "replacement": "orders"}],
    "metricRelabelings": [{"action": "labeldrop", "regex": "worker"}],
}
EXTRAS: dict[str, Any] = {
    "nameOverride": "pools-of",
    "namespaceOverride": "watch",
    "commonLabels": {"team": "orders"},
    "image": {"digest": f"sha256:{'0' * 64}", "registry": "registry.example", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "config": {
        "web": {"telemetry_path": "/pools", "max_request_bytes": 1_048_576, "header_timeout_seconds": 2.5},
        "log": {"level": "debug", "format": "json"},
        "metrics": {"worker_label": False},
        "databases": [DATABASE, {**DATABASE, "name": "stock", "pools": [], "interval_seconds": 60}],
    },
    "web": {"configSecret": {"name": "web"}},
    "extraArgs": ["--log-level=debug"],
    "extraEnvs": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"secretRef": {"name": "c"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "extraContainers": [{"name": "proxy", "image": "proxy:1"}],
    "extraInitContainers": [{"name": "wait", "image": "wait:1"}],
    "extraManifests": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-text\n",
    ],
    "replicaCount": 2,
    "strategy": {"type": "Recreate"},
    "annotations": {"a": "1"},
    "podAnnotations": {"b": "2"},
    "podLabels": {"c": "3"},
    "containerPort": 9000,
    "portName": "pools",
    "priorityClassName": "high",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "serviceAccount": {"annotations": {"d": "4"}},
    "service": {"type": "NodePort", "port": 80, "annotations": {"e": "5"}, "labels": {"f": "6"}},
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [{"ports": [{"port": 5432}]}],
    },
    "podDisruptionBudget": {"enabled": True, "maxUnavailable": "50%"},
    "serviceMonitor": MONITOR,
    "podMonitor": MONITOR,
    "prometheusRule": {"enabled": True, "namespace": "monitoring", "additionalLabels": {"role": "alerts"}},
    "dashboards": {"enabled": True, "namespace": "grafana", "annotations": {"folder": "Pools"}},
}
MATRIX: dict[str, dict[str, Any]] = {
    "nothing": {},
    "database": {"config": {"databases": [DATABASE]}},
    "monitors": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
    "rules": {"prometheusRule": {"enabled": True}},
    "dashboards": {"dashboards": {"enabled": True}},
    "guarded": {"web": {"configSecret": {"name": "web", "key": "w.yml"}}},
    "policy": {
        "networkPolicy": {"enabled": True},
        "podDisruptionBudget": {"enabled": True, "minAvailable": 2},
    },
    "bare": {"service": {"enabled": False}, "serviceAccount": {"create": False}, "tests": {"enabled": False}},
    "sidecar": {"mode": "sidecar"},
    "everything": EXTRAS,
    "everything beside": {**EXTRAS, "mode": "sidecar"},
}
matrix = pytest.mark.parametrize("given", MATRIX.values(), ids=MATRIX)


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example with its dependency in place."""
    return example(tmp_path_factory.mktemp("example"))


def pod(found: list[Manifest]) -> Any:
    """Return the pod of the deployment."""
    return of("Deployment", found)["spec"]["template"]


def exporter(found: list[Manifest]) -> Any:
    """Return the exporter's container, wherever it is in its pod."""
    spec = pod(found)["spec"]
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    (container,) = (container for container in containers if container["name"] == "sqlalchemy-pool-exporter")
    return container


def environment(container: Any) -> dict[str, str]:
    """Return the environment of a container."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


@matrix
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_kubernetes(given: dict[str, Any], version: str) -> None:
    """Every manifest is valid for the oldest and the newest Kubernetes; the operator's are tested below."""
    for manifest in render(given):
        if manifest["apiVersion"] != OPERATOR:
            validate(manifest, version)


@matrix
def test_lint(given: dict[str, Any]) -> None:
    """A strict lint finds nothing."""
    assert [] == lint(CHART, values=given)


@pytest.mark.parametrize(
    ("native", "version"), [(True, NATIVE_SINCE), (True, "1.37"), (False, "1.25"), (False, "1.37")]
)
def test_example_is_kubernetes(orders: Path, native: bool, version: str) -> None:
    """The example, with its sidecar of both kinds, is valid for the Kubernetes it is for, and strictly linted."""
    given = {"sqlalchemy-pool-exporter": {"sidecar": {"native": native}}}
    assert [] == lint(orders, values=given, with_subcharts=True)
    for manifest in render(given, orders):
        if manifest["apiVersion"] != OPERATOR:
            validate(manifest, version)


def test_validation_can_fail() -> None:
    """A field that a version does not know is found: a native sidecar is none in the oldest Kubernetes."""
    deployment = of("Deployment", render())
    deployment["spec"]["template"]["spec"]["containers"][0]["restartPolicy"] = "Always"
    validate(deployment, NATIVE_SINCE)
    with pytest.raises(Exception, match="restartPolicy"):
        validate(deployment, "1.25")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": 1}, "additional properties 'replicas' not allowed"),
        ({"mode": "daemonset"}, "'/mode': value must be one of 'deployment', 'sidecar'"),
        ({"image": {"name": "x"}}, "'/image': additional properties 'name' not allowed"),
        ({"image": {"digest": "latest"}}, "'/image/digest': 'latest' does not match"),
        ({"containerPort": "http"}, "'/containerPort': got string, want integer"),
        ({"containerPort": 70000}, "'/containerPort': maximum: got 70,000, want 65,535"),
        ({"portName": "a-name-that-is-too-long"}, "'/portName': maxLength"),
        (
            {"config": {"web": {"listen_address": ":1"}}},
            "'/config/web': additional properties 'listen_address'",
        ),
        ({"config": {"web": {"scrape_timeout_seconds": 0}}}, "'/config/web/scrape_timeout_seconds': minimum"),
        ({"config": {"log": {"level": "loud"}}}, "'/config/log/level': value must be one of"),
        ({"config": {"databases": [{"name": "a"}]}}, "'/config/databases/0': missing property 'dsnSecret'"),
        (
            {"config": {"databases": [{**DATABASE, "dsn": "postgresql://u:p@h/d"}]}},
            "'/config/databases/0': additional properties 'dsn' not allowed",
        ),
        ({"web": {"config": "basic_auth_users: {}"}}, "'/web': additional properties 'config' not allowed"),
        ({"extraEnvs": [{"value": "x"}]}, "'/extraEnvs/0': missing property 'name'"),
        ({"livenessProbe": {"httpGet": {}}}, "'/livenessProbe': additional properties 'httpGet' not allowed"),
        ({"service": {"port": 0}}, "'/service/port': minimum"),
        (
            {"commonLabels": {"app.kubernetes.io/name": "shop"}},
            "invalid propertyName 'app.kubernetes.io/name'",
        ),
        (
            {"podLabels": {"app.kubernetes.io/instance": "shop"}},
            "invalid propertyName 'app.kubernetes.io/instance'",
        ),
        ({"prometheusRule": {"alertLabels": {"severity": "page"}}}, "invalid propertyName 'severity'"),
        ({"service": {"labels": {"app.kubernetes.io/name": "s"}}}, "invalid propertyName"),
        ({"serviceMonitor": {"intervall": "1m"}}, "'/serviceMonitor': additional properties 'intervall'"),
        ({"serviceMonitor": {"interval": "often"}}, "'/serviceMonitor/interval': 'often' does not match"),
        (
            {"serviceMonitor": {"basicAuth": {"password": "p"}}},
            "'/serviceMonitor/basicAuth/password': got string",
        ),
        (
            {"prometheusRule": {"alerts": {"A": {"off": True}}}},
            "'/prometheusRule/alerts/A': additional properties",
        ),
        (
            {"prometheusRule": {"alerts": {"A": {"info": {"for": "5 min"}}}}},
            "'/prometheusRule/alerts/A/info/for'",
        ),
        (
            {"prometheusRule": {"thresholds": {"held_seconds": True}}},
            "'/prometheusRule/thresholds/held_seconds'",
        ),
        ({"sidecar": {"directory": "relative"}}, "'/sidecar/directory': 'relative' does not match"),
        (
            {"dashboards": {"labels": {"grafana_dashboard": 1}}},
            "'/dashboards/labels/grafana_dashboard': got number",
        ),
    ],
)
def test_schema_refuses(given: dict[str, Any], said: str) -> None:
    """A value that is not there or not right is refused, and the message names it; secrets have no place to be."""
    assert said in refusal(given)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"thresholds": {"held": 60}}, r"thresholds.held: unknown; there are: .*held_seconds"),
        (
            {"thresholds": {"held_seconds": "5m"}},
            r"thresholds.held_seconds: expected a number as 300 is, got \"5m\"",
        ),
        ({"thresholds": {"held_for": 5}}, r"thresholds.held_for: expected a duration as 1m is, got \"5\""),
        ({"thresholds": {"held_for": ""}}, r"thresholds.held_for: expected a duration"),
        ({"thresholds": {"rate_window": "0s"}}, r"thresholds.rate_window: a window of nothing"),
        ({"thresholds": {"fleet_labels": "a-b"}}, r"thresholds.fleet_labels: expected labels"),
        (
            {"thresholds": {"wait_objective_seconds": 0.3}},
            r"wait_objective_seconds: expected one of 0.0005, .*got 0.3",
        ),
        (
            {"thresholds": {"wait_objective_ratio": 99}},
            r"wait_objective_ratio: expected at most 1, got 99",
        ),
        (
            {"alerts": {"SQLAlchemyPoolHeld": {}}},
            r"alerts.SQLAlchemyPoolHeld: unknown; .*SQLAlchemyPoolHeldTooLong",
        ),
        (
            {"alerts": {"SQLAlchemyPoolNoPrePing": {"critical": {"for": "1m"}}}},
            r"alerts.SQLAlchemyPoolNoPrePing.critical: it has no such tier, only: warning",
        ),
    ],
)
def test_rules_refuse(rule: dict[str, Any], said: str) -> None:
    """A threshold or a switch that no rule has is an error that says which there are: it would do nothing otherwise."""
    assert re.search(said, refusal({"prometheusRule": {"enabled": True, **rule}}))


def test_names_of_databases_are_unique() -> None:
    """Two databases of one name, which the exporter would not start with, are refused before there is a pod."""
    assert "two of the name orders" in refusal({"config": {"databases": [DATABASE, DATABASE]}})


def test_service_monitor_needs_its_service() -> None:
    """A monitor of a service that is not made is refused."""
    said = refusal({"serviceMonitor": {"enabled": True}, "service": {"enabled": False}})
    assert "serviceMonitor.enabled needs service.enabled" in said


@pytest.mark.parametrize("given", [{}, EXTRAS], ids=["nothing", "everything"])
def test_security_defaults(given: dict[str, Any]) -> None:
    """Nobody in particular, nothing to write, no capability, no token; in the pod of `helm test` too."""
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


def test_what_there_is_by_default() -> None:
    """A deployment with its service, account, configuration and test; everything else is asked for."""
    assert {"Deployment", "Service", "ServiceAccount", "ConfigMap", "Pod"} == kinds(render())


@pytest.mark.parametrize(
    "given", [{"mode": "sidecar"}, {**EXTRAS, "mode": "sidecar"}], ids=["nothing", "everything"]
)
def test_sidecar_touches_no_pod(given: dict[str, Any]) -> None:
    """As a sidecar the chart makes nothing that selects the application's pods but what scrapes them."""
    assert kinds(render(given)) <= {"ConfigMap", "PodMonitor", "PrometheusRule"}


@matrix
def test_configuration(given: dict[str, Any], tmp_path: Path) -> None:
    """The exporter finds nothing wrong with the configuration that is rendered for it."""
    (rendered,) = (
        found["data"]["exporter.yaml"] for found in render(given) if "exporter.yaml" in found.get("data", {})
    )
    (tmp_path / "web").mkdir()
    for name in ("web.yaml", "w.yml"):
        (tmp_path / "web" / name).write_text("")
    path = tmp_path / "exporter.yaml"
    path.write_text(rendered.replace("/etc/sqlalchemy-pool-exporter", str(tmp_path)))
    said = run("check-config", "--config", path)
    assert (0, "") == (said.returncode, said.stderr)


def test_databases_are_mounted() -> None:
    """Each database's DSN is a file of its own that comes from the secret that was named."""
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


@pytest.mark.parametrize(
    "given", [{"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}, EXTRAS]
)
def test_monitors_find_what_they_scrape(given: dict[str, Any]) -> None:
    """The labels, the port and the path of the monitors are those of the service, the pods and the exporter."""
    found = render(given)
    service, container = of("Service", found), exporter(found)
    path = given.get("config", {}).get("web", {}).get("telemetry_path", "/metrics")
    for kind, endpoints, labels, ports in (
        ("ServiceMonitor", "endpoints", service["metadata"]["labels"], service["spec"]["ports"]),
        ("PodMonitor", "podMetricsEndpoints", pod(found)["metadata"]["labels"], container["ports"]),
    ):
        monitor = of(kind, found)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = monitor["spec"][endpoints]
        assert [endpoint["port"]] == [port["name"] for port in ports]
        assert path == endpoint["path"]
        assert [service["metadata"]["namespace"]] == monitor["spec"]["namespaceSelector"]["matchNames"]
    assert service["spec"]["selector"].items() <= pod(found)["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= of("Pod", found)["metadata"]["labels"].items()


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_monitor_says_all(kind: str) -> None:
    """What a monitor is told reaches the operator, under the names of its API."""
    monitor = of(kind, render(EXTRAS))
    spec = monitor["spec"]
    (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]
    assert "monitoring" == monitor["metadata"]["namespace"]
    assert {"release": "prometheus", "team": "orders"}.items() <= monitor["metadata"]["labels"].items()
    assert {"jobLabel": "app.kubernetes.io/name", "sampleLimit": 5000}.items() <= spec.items()
    same = (
        "interval",
        "scrapeTimeout",
        "scheme",
        "tlsConfig",
        "basicAuth",
        "honorLabels",
        "relabelings",
        "metricRelabelings",
    )
    assert {name: MONITOR[name] for name in same} == {name: endpoint[name] for name in same}
    assert {*same, "port", "path"} == set(endpoint)


def test_default_rules_are_the_packages() -> None:
    """Without thresholds of its own the chart renders what `sqlalchemy-pool-exporter rules` does."""
    committed = yaml.safe_load(
        (ROOT / "config" / "prometheus" / "rules" / "sqlalchemy-pool.rules.yml").read_text()
    )
    assert (
        committed["groups"]
        == of("PrometheusRule", render({"prometheusRule": {"enabled": True}}))["spec"]["groups"]
    )


SWITCHED = {
    "enabled": True,
    "alertLabels": {"team": "orders"},
    "thresholds": {
        "held_seconds": 1_000_000,
        "held_for": "9m",
        "wait_objective_seconds": 1,
        "fleet_labels": "job",
    },
    "alerts": {
        "SQLAlchemyPoolNoPrePing": {"disabled": True},
        "SQLAlchemyPoolNearCapacity": {
            "warning": {"disabled": True},
            "critical": {"severity": "info", "for": "2h"},
        },
    },
}


@pytest.mark.requires("promtool")
@pytest.mark.parametrize("rule", [{"enabled": True}, SWITCHED], ids=["default", "switched"])
def test_promtool_takes_the_rules(rule: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus takes the rules, with every placeholder replaced and its own templates left alone."""
    spec = of("PrometheusRule", render({"prometheusRule": rule}))["spec"]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(spec))
    said = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", path], capture_output=True, text=True, check=False
    )
    assert (0, "") == (said.returncode, said.stderr)
    assert "${" not in path.read_text()
    assert "{{ $labels.pool }}" in path.read_text()


def test_switches() -> None:
    """Thresholds, labels and switches change the alerts they name, by tier, and no other."""
    groups = of("PrometheusRule", render({"prometheusRule": SWITCHED}))["spec"]["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    usual = [
        rule
        for group in of("PrometheusRule", render({"prometheusRule": {"enabled": True}}))["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(usual) - 2 == len(alerts)
    (capacity,) = (rule for rule in alerts if rule["alert"] == "SQLAlchemyPoolNearCapacity")
    assert ("2h", {"severity": "info", "team": "orders"}) == (capacity["for"], capacity["labels"])
    (held,) = (rule for rule in alerts if rule["alert"] == "SQLAlchemyPoolHeldTooLong")
    assert ("9m", True) == (held["for"], "1000000" in held["expr"])
    assert {"orders"} == {rule["labels"]["team"] for rule in alerts}


def test_dashboards() -> None:
    """Each dashboard is there as it was written, in a ConfigMap that Grafana's sidecar finds."""
    found = [
        entry
        for entry in render({"dashboards": {"enabled": True}})
        if "dashboard" in entry["metadata"]["name"]
    ]
    written = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards").glob("*.json")}
    loaded = {
        name.removeprefix("sqlalchemy-pool-"): json.loads(text)
        for entry in found
        for name, text in entry["data"].items()
    }
    assert written == loaded
    assert {"1"} == {entry["metadata"]["labels"]["grafana_dashboard"] for entry in found}
    assert any("{{pool}}" in text for entry in found for text in entry["data"].values())


@pytest.mark.parametrize("native", [True, False])
def test_sidecar(orders: Path, native: bool) -> None:
    """The application and its sidecar share one directory in memory, which only the application may write to."""
    found = render({"sqlalchemy-pool-exporter": {"sidecar": {"native": native}}}, orders)
    spec, sidecar = pod(found)["spec"], exporter(found)
    assert native == (sidecar in (spec["initContainers"] or []))
    assert native == (sidecar.get("restartPolicy") == "Always")
    assert "livenessProbe" in sidecar
    assert not {"readinessProbe", "startupProbe"} & set(sidecar)
    application = spec["containers"][0]
    directory = environment(application)["SQLALCHEMY_POOL_EXPORTER_DIR"]
    for container, writes in ((application, True), (sidecar, False)):
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "sqlalchemy-pools")
        assert (directory, writes) == (mount["mountPath"], not mount.get("readOnly"))
    config = yaml.safe_load(
        next(entry for entry in found if "exporter.yaml" in entry.get("data", {}))["data"]["exporter.yaml"]
    )
    assert directory == config["segments"]["directory"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "sqlalchemy-pools")
    assert "Memory" == volume["emptyDir"]["medium"]
    # Whoever runs as another user needs the group.
    assert application["securityContext"]["runAsUser"] != sidecar["securityContext"]["runAsUser"]
    assert "1" == environment(application)["SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"]
    assert "fsGroup" in spec["securityContext"]
    monitor = of("PodMonitor", found)["spec"]
    assert monitor["selector"]["matchLabels"].items() <= pod(found)["metadata"]["labels"].items()
    assert sidecar["ports"][0]["name"] == monitor["podMetricsEndpoints"][0]["port"]
    assert not {"NetworkPolicy", "Service", "ServiceAccount", "PodDisruptionBudget"} & kinds(found)


def test_changed_configuration_restarts_the_pods(orders: Path) -> None:
    """A pod has an annotation that differs with the exporter's configuration, on its own and as a sidecar."""

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


def test_sidecar_refuses(orders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sidecar of a chart that makes a deployment, or a native one in a cluster that has none, is refused."""
    with pytest.raises(Exception, match="set mode to sidecar"):
        render({"sqlalchemy-pool-exporter": {"mode": "deployment"}}, orders)
    capfd.readouterr()
    lint(
        orders, kube_version="v1.28.0"
    )  # what a template refuses is only told there, and nothing else takes a version
    assert "sidecar.native needs Kubernetes 1.29" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("guarded", "probe"), [({}, "httpGet"), ({"web": {"configSecret": {"name": "web"}}}, "exec")]
)
def test_probes(guarded: dict[str, Any], probe: str) -> None:
    """Kubernetes asks itself where it can; where TLS or a password is, the container does, which knows of both."""
    container = exporter(render(guarded))
    assert probe in container["livenessProbe"]
    assert probe in container["readinessProbe"]
    if probe == "exec":
        name, *arguments = container["livenessProbe"]["exec"]["command"]
        assert ("sqlalchemy-pool-exporter", "healthcheck") == (name, arguments[0])
        said = run(*arguments)
        assert (1, "no answer from ':10079'") == (said.returncode, said.stderr.split(": ")[1])


def test_network_policy() -> None:
    """It lets in whom it is told and `helm test`, for the metrics alone, and says nothing of egress unless told to."""
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
    """The notes say what to do next, for either mode."""
    notes = "sqlalchemy-pool-exporter/templates/NOTES.txt"
    assert "helm --namespace shop test pools" in chart().render(name="pools", namespace="shop")[notes]
    assert "set serviceMonitor.enabled" in chart().render(name="pools", namespace="shop")[notes]
    said = chart().render(values={"serviceMonitor": {"enabled": True}}, name="pools", namespace="shop")[notes]
    assert "Nothing scrapes it yet" not in said
    said = chart().render(values={"mode": "sidecar"}, name="pools", namespace="shop")[notes]
    assert "label sqlalchemy-pool-exporter=pools" in said
    assert "podMonitor.enabled" in said


def test_version() -> None:
    """The chart and the image it runs are of the package's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (version, version) == (chart().version, chart().metadata["appVersion"])
    assert exporter(render())["image"].endswith(f":{version}")


def test_generated_files() -> None:
    """Rules, dashboards, README and schema are what their sources make of them: else run `make chart`."""
    assert [] == [
        str(path) for path, content in files().items() if not path.exists() or content != path.read_text()
    ]
    copies = {path for path in (CHART / "files").rglob("*") if path.is_file()}
    assert copies <= set(files())


def test_every_value_is_in_the_schema() -> None:
    """Every value with a default is in the schema, every one in the schema has a comment, and each level is closed."""
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
    """The example depends on the chart beside it, at a version that it has."""
    dependency = yaml.safe_load((EXAMPLE / "Chart.yaml").read_text())["dependencies"][0]
    assert (EXAMPLE / dependency["repository"].removeprefix("file://")).resolve() == CHART
    assert f"^{chart().version}" == dependency["version"]
