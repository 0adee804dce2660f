{{/* SPDX-License-Identifier: Apache-2.0

Templates for the pods of a chart that depends on this one, with mode sidecar. Each takes that chart's own context:

  metadata.labels:      include "sqlalchemy-pool-exporter.sidecar.labels" .
  metadata.annotations: include "sqlalchemy-pool-exporter.sidecar.annotations" .
  initContainers:       include "sqlalchemy-pool-exporter.sidecar.initContainers" .
  containers:           include "sqlalchemy-pool-exporter.sidecar.containers" .
  volumes:              include "sqlalchemy-pool-exporter.sidecar.volumes" .
  and in the application's container
  env:                  include "sqlalchemy-pool-exporter.sidecar.env" .
  volumeMounts:         include "sqlalchemy-pool-exporter.sidecar.volumeMounts" .

One of initContainers and containers is empty, by the value `sidecar.native`, so that both can stay where they are.
*/}}

{{/* The label by which the PodMonitor finds the pods. */}}
{{- define "sqlalchemy-pool-exporter.sidecar.labels" -}}
sqlalchemy-pool-exporter: {{ .Release.Name }}
{{- end -}}

{{/* The checksum restarts the pods after a change of the configuration, which the exporter reads when it starts. */}}
{{- define "sqlalchemy-pool-exporter.sidecar.annotations" -}}
{{- include "sqlalchemy-pool-exporter.sidecar.check" . -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
checksum/sqlalchemy-pool-exporter: {{ include "sqlalchemy-pool-exporter.config" . | sha256sum }}
{{- end -}}
{{- end -}}

{{/* This chart's own context is in .Subcharts of the chart that depends on this one. */}}
{{- define "sqlalchemy-pool-exporter.sidecar.check" -}}
{{- if not (hasKey .Subcharts "sqlalchemy-pool-exporter") -}}
{{- fail "sqlalchemy-pool-exporter: list the chart among your dependencies, without an alias, to use its sidecar" -}}
{{- end -}}
{{- $exporter := index .Subcharts "sqlalchemy-pool-exporter" -}}
{{- if ne $exporter.Values.mode "sidecar" -}}
{{- fail "sqlalchemy-pool-exporter: set mode to sidecar for the chart that puts it into its pods" -}}
{{- end -}}
{{- if and $exporter.Values.sidecar.native (semverCompare "<1.29-0" .Capabilities.KubeVersion.Version) -}}
{{- fail "sqlalchemy-pool-exporter: sidecar.native needs Kubernetes 1.29; set it to false for an older one" -}}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.sidecar.initContainers" -}}
{{- include "sqlalchemy-pool-exporter.sidecar.check" . -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
{{- if .Values.sidecar.native -}}
- {{ include "sqlalchemy-pool-exporter.container" . | nindent 2 | trim }}
  restartPolicy: Always
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.sidecar.containers" -}}
{{- include "sqlalchemy-pool-exporter.sidecar.check" . -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
{{- if not .Values.sidecar.native -}}
- {{ include "sqlalchemy-pool-exporter.container" . | nindent 2 | trim }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.sidecar.env" -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
- name: SQLALCHEMY_POOL_EXPORTER_DIR
  value: {{ .Values.sidecar.directory }}
# The sidecar shows the pools, so the application's own endpoint does not show them again.
- name: SQLALCHEMY_POOL_EXPORTER_SIDECAR
  value: "1"
{{- if .Values.sidecar.groupReadable }}
- name: SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE
  value: "1"
{{- end }}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.sidecar.volumeMounts" -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
- name: sqlalchemy-pools
  mountPath: {{ .Values.sidecar.directory }}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.sidecar.volumes" -}}
{{- with index .Subcharts "sqlalchemy-pool-exporter" -}}
- name: sqlalchemy-pools
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sidecar.sizeLimit }}
{{ include "sqlalchemy-pool-exporter.containerVolumes" . }}
{{- end -}}
{{- end -}}
