{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* How an endpoint is scraped, the same for a ServiceMonitor and a PodMonitor: dict "root" $ "monitor" its values. */}}
{{- define "sqlalchemy-pool-exporter.endpoint" -}}
port: {{ .root.Values.portName }}
path: {{ default "/metrics" .root.Values.config.web.telemetry_path }}
scheme: {{ .monitor.scheme }}
honorLabels: {{ .monitor.honorLabels }}
{{- with .monitor.interval }}
interval: {{ . }}
{{- end }}
{{- with .monitor.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .monitor.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.basicAuth }}
basicAuth:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.monitored" -}}
{{- with .monitor.jobLabel }}
jobLabel: {{ . }}
{{- end }}
{{- with .monitor.sampleLimit }}
sampleLimit: {{ int . }}
{{- end }}
namespaceSelector:
  matchNames:
    - {{ include "sqlalchemy-pool-exporter.namespace" .root }}
{{- end -}}
