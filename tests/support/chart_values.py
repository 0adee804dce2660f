# SPDX-License-Identifier: Apache-2.0
"""Values for the chart: one set for each way of using it, and one set with every value."""

from __future__ import annotations

from typing import Any

import pytest

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
