# SPDX-License-Identifier: Apache-2.0
"""What is provisioned and what `docker compose` starts, without Docker: that all of it fits together."""

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
    """Return where in the container which source is."""
    # A default has a colon of its own: ${NAME:-/default}:/there:ro
    found = [re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(:ro)?", volume) for volume in service["volumes"]]
    return {PurePosixPath(one[2]): one[1] for one in found if one}


def _source(service: dict[str, Any], inside: str) -> Path:
    """Return the file or directory of the repository that a container has at a path."""
    path = PurePosixPath(inside)
    for mount, source in _mounts(service).items():
        if path.is_relative_to(mount):
            return CONFIG / source / path.relative_to(mount)
    raise AssertionError(f"nothing is mounted at {inside}")


def test_services(services: dict[str, Any]) -> None:
    """The four are there, and images have a version."""
    assert {"exporter", "postgres", "prometheus", "grafana"} == services.keys()
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        if "image" in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", service["image"])


def test_dockerfile(services: dict[str, Any]) -> None:
    """The exporter is built from the project's own Dockerfile, and does what its image is for."""
    exporter = services["exporter"]
    dockerfile = CONFIG / exporter["build"]["context"] / exporter["build"]["dockerfile"]
    assert 'ENTRYPOINT ["sqlalchemy-pool-exporter"]' in dockerfile.read_text("utf-8")


def test_nothing_is_reached_from_outside(services: dict[str, Any]) -> None:
    """Every port is bound to this machine, and no file has a password."""
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not [name for name in service.get("environment", {}) if re.search("PASS|SECRET|TOKEN", name)]
    for path in CONFIG.glob("compose*.yaml"):
        assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text("utf-8"))


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    """Each file and directory of the repository is there, each volume is declared, and no mount is left unread."""
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
    """Its configuration is valid and where it is told to look, it reads the mounted directory and its own server."""
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
    """Its configuration is where the image looks for it, valid, with our rules, and scrapes the exporter."""
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
    """It is the Prometheus of the same file, and knows how often that scrapes."""
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
    """Where Grafana is told to look are our dashboards and no other JSON, and its first page is one of them."""
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
