# SPDX-License-Identifier: Apache-2.0
"""The files for `docker compose`, checked without Docker: services, mounts and provisioning fit together."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support import grafana
from tests.support.paths import ROOT
from tests.support.sidecar import run

pytestmark = pytest.mark.newest
CONFIG = ROOT / "config"
COMPOSE = CONFIG / "compose.yaml"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = _yaml(COMPOSE)["services"]
    return found


def _mounts(service: dict[str, Any]) -> dict[PurePosixPath, str]:
    """Map each path in the container to the source that is mounted there."""
    # The source can contain a colon: ${NAME:-/default}:/there:ro
    found = [re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(:ro)?", volume) for volume in service["volumes"]]
    return {PurePosixPath(one[2]): one[1] for one in found if one}


def _source(service: dict[str, Any], inside: str) -> Path:
    """Return the file or directory of the repository that is mounted at a path in the container."""
    path = PurePosixPath(inside)
    for mount, source in _mounts(service).items():
        if path.is_relative_to(mount):
            return CONFIG / source / path.relative_to(mount)
    raise AssertionError(f"nothing is mounted at {inside}")


def test_services(services: dict[str, Any]) -> None:
    """There are four services, and each image has a version."""
    assert {"exporter", "postgres", "prometheus", "grafana"} == services.keys()
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        if "image" in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", service["image"])


def test_dockerfile(services: dict[str, Any]) -> None:
    """The exporter is built from the project's Dockerfile, which starts the exporter."""
    exporter = services["exporter"]
    dockerfile = CONFIG / exporter["build"]["context"] / exporter["build"]["dockerfile"]
    assert 'ENTRYPOINT ["sqlalchemy-pool-exporter"]' in dockerfile.read_text("utf-8")


def test_nothing_is_reached_from_outside(services: dict[str, Any]) -> None:
    """Every port is bound to localhost, and no file has a password."""
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not [name for name in service.get("environment", {}) if re.search("PASS|SECRET|TOKEN", name)]
    for path in CONFIG.glob("compose*.yaml"):
        assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text("utf-8"))


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    """Each mounted file exists, each mounted volume is declared, and every mount is understood by this test."""
    declared = _yaml(COMPOSE)["volumes"]
    for service in services.values():
        mounts = _mounts(service) if "volumes" in service else {}
        assert len(service.get("volumes", ())) == len(mounts)
        for source in mounts.values():
            if source.startswith("."):
                assert (CONFIG / source).exists(), source
            else:
                assert source in declared or source.startswith("${POOLS_DIR:-"), source


def test_exporter(services: dict[str, Any]) -> None:
    """The exporter's configuration is valid and mounted; the directory and the servers in it exist in the file."""
    exporter = services["exporter"]
    command = exporter["command"]
    path = _source(exporter, command[command.index("--config") + 1])
    done = run("check-config", "--config", path)
    assert (0, "") == (done.returncode, done.stderr)
    config = _yaml(path)
    assert PurePosixPath(config["segments"]["directory"]) in _mounts(exporter)
    for database in config["databases"]:
        assert urlsplit(database["dsn"]).hostname in services


@pytest.mark.requires("promtool")
def test_prometheus(services: dict[str, Any]) -> None:
    """Prometheus' configuration is mounted where the image reads it, valid, and has the rules and the exporter."""
    path = _source(services["prometheus"], "/etc/prometheus/prometheus.yml")
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(r"SUCCESS: [0-9]+ rules found", done.stdout), done.stdout
    (job,) = _yaml(path)["scrape_configs"]
    assert "sqlalchemy-pool-exporter" == job["job_name"]
    ((target,),) = (one["targets"] for one in job["static_configs"])
    host, _, port = target.partition(":")
    assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]


def test_grafana_datasource(services: dict[str, Any]) -> None:
    """Grafana's data source is the Prometheus of the compose file, with its scrape interval."""
    directory = _source(services["grafana"], "/etc/grafana/provisioning/datasources")
    (file,) = directory.glob("*.yml")
    provisioned = _yaml(file)
    (source,) = provisioned["datasources"]
    url = urlsplit(source["url"])
    assert (1, "prometheus") == (provisioned["apiVersion"], source["type"])
    assert f"127.0.0.1:{url.port}:{url.port}" in services[str(url.hostname)]["ports"]
    scraping = _yaml(CONFIG / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert scraping == source["jsonData"]["timeInterval"]


def test_grafana_dashboards(services: dict[str, Any]) -> None:
    """Grafana finds our dashboards and no other JSON, and its home page is one of them."""
    service = services["grafana"]
    (file,) = _source(service, "/etc/grafana/provisioning/dashboards").glob("*.yml")
    provisioned = _yaml(file)
    (provider,) = provisioned["providers"]
    assert (1, "file", False) == (provisioned["apiVersion"], provider["type"], provider["allowUiUpdates"])
    directory = _source(service, provider["options"]["path"])
    assert grafana.DIRECTORY == directory.resolve()
    assert sorted(grafana.NAMES) == sorted(path.stem for path in directory.rglob("*.json"))
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert _source(service, home).is_file()
