# SPDX-License-Identifier: Apache-2.0
"""The chart as a sidecar in an application's pod: what both share, and what the application's chart does itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.pages import MOST_ENDED
from tests.support.chart_values import EXTRAS
from tests.support.charts import exporter, kinds, lint, of, pod, render
from tests.support.segments import new_block

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest


def environment(container: Any) -> dict[str, str]:
    """Return the environment variables of a container."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize(
    "given", [{"mode": "sidecar"}, {**EXTRAS, "mode": "sidecar"}], ids=["nothing", "everything"]
)
def test_sidecar_touches_no_pod(given: dict[str, Any]) -> None:
    """In sidecar mode the chart makes no object that selects the application's pods, except for the pod monitor."""
    assert kinds(render(given)) <= {"ConfigMap", "PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("native", [True, False])
def test_sidecar(orders: Path, native: bool) -> None:
    """Application and sidecar share one directory in memory, which only the application can write to."""
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
    # The two containers run as different users, so the sidecar reads the files through the group.
    assert application["securityContext"]["runAsUser"] != sidecar["securityContext"]["runAsUser"]
    assert "1" == environment(application)["SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE"]
    # The sidecar shows the pools; the application's own endpoint would show them again.
    assert "1" == environment(application)["SQLALCHEMY_POOL_EXPORTER_SIDECAR"]
    assert "env" not in sidecar
    assert "fsGroup" in spec["securityContext"]
    monitor = of("PodMonitor", found)["spec"]
    assert monitor["selector"]["matchLabels"].items() <= pod(found)["metadata"]["labels"].items()
    assert sidecar["ports"][0]["name"] == monitor["podMetricsEndpoints"][0]["port"]
    assert not {"NetworkPolicy", "Service", "ServiceAccount", "PodDisruptionBudget"} & kinds(found)


def test_sidecar_refuses(orders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Deployment mode in an application's pod is refused, as is a native sidecar before Kubernetes 1.29."""
    with pytest.raises(Exception, match="set mode to sidecar"):
        render({"sqlalchemy-pool-exporter": {"mode": "deployment"}}, orders)
    capfd.readouterr()
    lint(
        orders, kube_version="v1.28.0"
    )  # only lint takes a version, and only its stderr has the refusal of a template
    assert "sidecar.native needs Kubernetes 1.29" in capfd.readouterr().err


def test_the_files_of_64_workers_fit(orders: Path, tmp_path: Path) -> None:
    """The directory has room for 64 workers with 20 pools each, and with as many names that are gone as they keep."""
    (volume,) = (
        volume
        for volume in pod(render({}, orders))["spec"]["volumes"]
        if volume["name"] == "sqlalchemy-pools"
    )
    limit = volume["emptyDir"]["sizeLimit"]
    lease = Lease(tmp_path)
    for number in range(20):
        new_block(lease, f"live {number}")
    for number in range(20 + MOST_ENDED):
        block = new_block(lease, f"live {number}" if number < 20 else f"gone {number}")
        block.pages.fold(block)
    lease.close()
    assert limit.endswith("Mi")
    assert 64 * lease.path.stat().st_blocks * 512 <= int(limit.removesuffix("Mi")) * 2**20
