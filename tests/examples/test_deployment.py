# SPDX-License-Identifier: Apache-2.0
"""The manifests for Kubernetes and Compose are valid, and what they give both processes makes these find each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter import environment
from tests.support.charts import exporter, of, pod, render, validate
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest
FOLDER = ROOT / "examples" / "deployment"
MOUNT = "/run/sqlalchemy-pools"


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_takes_it(manifests: list[dict[str, Any]], version: str) -> None:
    """The deployment is valid for the first Kubernetes with native sidecars and for the newest."""
    pytest.importorskip("kubernetes_validate")
    validate(of("Deployment", manifests), version)


def test_it_has_what_the_chart_has(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    """Volume, variables, group, security and the monitor's port are as the chart makes them."""
    pytest.importorskip("helm_python")
    from tests.support.charts import example  # noqa: PLC0415 - builds the dependency, with Helm

    rendered = render({}, example(tmp_path))
    ours, theirs = pod(manifests)["spec"], pod(rendered)["spec"]
    assert ours["securityContext"]["fsGroup"] == theirs["securityContext"]["fsGroup"]
    assert ours["containers"][0]["env"] == [
        {**variable, "value": MOUNT} if variable["name"] == environment.DIRECTORY else variable
        for variable in theirs["containers"][0]["env"]
    ]
    assert ours["containers"][0]["securityContext"] == theirs["containers"][0]["securityContext"]
    assert [volume["emptyDir"] for volume in ours["volumes"]] == [
        volume["emptyDir"] for volume in theirs["volumes"] if "emptyDir" in volume
    ]
    sidecar, charts = exporter(manifests), exporter(rendered)
    assert charts["securityContext"].items() >= sidecar["securityContext"].items()
    for key in ("image", "restartPolicy", "resources"):
        assert sidecar[key] == charts[key], key
    assert [{**port, "protocol": "TCP"} for port in sidecar["ports"]] == charts["ports"]
    (endpoint,) = of("PodMonitor", manifests)["spec"]["podMetricsEndpoints"]
    assert sidecar["ports"][0]["name"] == endpoint["port"]


def test_both_containers_find_each_other(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    """With the variables of the one and the arguments of the other, the sidecar shows the application's pools."""
    application, sidecar = pod(manifests)["spec"]["containers"][0], exporter(manifests)
    for container, mode in ((application, None), (sidecar, True)):
        (mount,) = container["volumeMounts"]
        assert (MOUNT, mode) == (mount["mountPath"], mount.get("readOnly"))
    variables = {one["name"]: one["value"].replace(MOUNT, str(tmp_path)) for one in application["env"]}
    command, *arguments = (one.replace(MOUNT, str(tmp_path)) for one in sidecar["args"])
    assert "serve" == command
    arguments[arguments.index(":10079")] = "127.0.0.1:0"
    with Sidecar(*arguments) as running, Worker(tmp_path, **variables) as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 3)
        assert 3 == running.value("checkouts_total", pool="orders")
        assert running.get(sidecar["livenessProbe"]["httpGet"]["path"])[0] == 200
    (file,) = tmp_path.glob("worker-*")
    assert 0o640 == file.stat().st_mode & 0o777


def test_compose() -> None:
    """The application's service has the exporter's user and directory."""
    (application,) = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"].values()
    services = yaml.safe_load((ROOT / "config" / "compose.yaml").read_text("utf-8"))["services"]
    assert services["exporter"]["user"] == application["user"]
    (volume,) = application["volumes"]
    assert f"{volume}:ro" in services["exporter"]["volumes"]
    config = yaml.safe_load((ROOT / "config" / "compose-exporter.yaml").read_text("utf-8"))
    assert config["segments"]["directory"] == application["environment"][environment.DIRECTORY]
    assert "1" == application["environment"][environment.SIDECAR]
    assert "@postgres:" in application["environment"]["DATABASE_URL"]
    assert "postgres" in services
