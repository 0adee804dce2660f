{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "sqlalchemy-pool-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.fullname" -}}
{{- $name := include "sqlalchemy-pool-exporter.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sqlalchemy-pool-exporter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of the pod of `helm test`, which no service selects. */}}
{{- define "sqlalchemy-pool-exporter.testLabels" -}}
app.kubernetes.io/name: sqlalchemy-pool-exporter-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.labels" -}}
{{ include "sqlalchemy-pool-exporter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: sqlalchemy-pool-exporter
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: dict "root" $ and the object's own parts: "name" (a suffix), "labels", "annotations",
"namespace". */}}
{{- define "sqlalchemy-pool-exporter.metadata" -}}
name: {{ printf "%s%s" (include "sqlalchemy-pool-exporter.fullname" .root) (default "" .name) }}
namespace: {{ default (include "sqlalchemy-pool-exporter.namespace" .root) .namespace }}
labels:
  {{- merge (dict) (default (dict) .labels) (include "sqlalchemy-pool-exporter.labels" .root | fromYaml) | toYaml | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sqlalchemy-pool-exporter.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- printf "%s/%s:%s" .Values.image.registry .Values.image.repository $tag | trimPrefix "/" -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The exporter's configuration: the part from the values, and the part that the chart sets. */}}
{{- define "sqlalchemy-pool-exporter.config" -}}
{{- $web := dict "listen_address" (printf ":%d" (int .Values.containerPort)) -}}
{{- if .Values.web.configSecret.name -}}
{{- $_ := set $web "config_file" (printf "/etc/sqlalchemy-pool-exporter/web/%s" .Values.web.configSecret.key) -}}
{{- end -}}
{{- $config := dict "web" (merge $web .Values.config.web) -}}
{{- with .Values.config.log }}{{ $_ := set $config "log" . }}{{ end -}}
{{- with .Values.config.metrics }}{{ $_ := set $config "metrics" . }}{{ end -}}
{{- if eq .Values.mode "sidecar" -}}
{{- $_ := set $config "segments" (dict "directory" .Values.sidecar.directory) -}}
{{- end -}}
{{- $databases := list -}}
{{- $names := list -}}
{{- range .Values.config.databases -}}
{{- if has .name $names -}}
{{- fail (printf "config.databases: there are two of the name %s" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $database := merge (dict "dsn_file" (printf "/etc/sqlalchemy-pool-exporter/dsn/%s" .name)) (omit . "dsnSecret") -}}
{{- $databases = append $databases $database -}}
{{- end -}}
{{- with $databases }}{{ $_ := set $config "databases" . }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The exporter's container, in a deployment and in the pod of another chart. */}}
{{- define "sqlalchemy-pool-exporter.container" -}}
{{- $guarded := .Values.web.configSecret.name -}}
{{- $asked := list "sqlalchemy-pool-exporter" "healthcheck" (printf "--listen-address=:%d" (int .Values.containerPort)) -}}
{{- if $guarded -}}
{{- $asked = append $asked (printf "--web.config.file=/etc/sqlalchemy-pool-exporter/web/%s" .Values.web.configSecret.key) -}}
{{- end -}}
name: sqlalchemy-pool-exporter
image: {{ include "sqlalchemy-pool-exporter.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config=/etc/sqlalchemy-pool-exporter/config/exporter.yaml
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnvs }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: {{ .Values.portName }}
    containerPort: {{ .Values.containerPort }}
    protocol: TCP
livenessProbe:
  {{- toYaml .Values.livenessProbe | nindent 2 }}
  {{- if $guarded }}
  exec:
    command:
      {{- toYaml $asked | nindent 6 }}
  {{- else }}
  httpGet:
    path: /-/healthy
    port: {{ .Values.portName }}
  {{- end }}
{{- if eq .Values.mode "deployment" }}
readinessProbe:
  {{- toYaml .Values.readinessProbe | nindent 2 }}
  {{- if $guarded }}
  exec:
    command:
      {{- toYaml $asked | nindent 6 }}
  {{- else }}
  httpGet:
    path: /-/ready
    port: {{ .Values.portName }}
  {{- end }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: sqlalchemy-pool-exporter-config
    mountPath: /etc/sqlalchemy-pool-exporter/config
    readOnly: true
  {{- if $guarded }}
  - name: sqlalchemy-pool-exporter-web
    mountPath: /etc/sqlalchemy-pool-exporter/web
    readOnly: true
  {{- end }}
  {{- if .Values.config.databases }}
  - name: sqlalchemy-pool-exporter-dsn
    mountPath: /etc/sqlalchemy-pool-exporter/dsn
    readOnly: true
  {{- end }}
  {{- if eq .Values.mode "sidecar" }}
  - name: sqlalchemy-pools
    mountPath: {{ .Values.sidecar.directory }}
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "sqlalchemy-pool-exporter.containerVolumes" -}}
- name: sqlalchemy-pool-exporter-config
  configMap:
    name: {{ include "sqlalchemy-pool-exporter.fullname" . }}
{{- with .Values.web.configSecret.name }}
- name: sqlalchemy-pool-exporter-web
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.config.databases }}
- name: sqlalchemy-pool-exporter-dsn
  projected:
    sources:
      {{- range . }}
      - secret:
          name: {{ .dsnSecret.name }}
          items:
            - key: {{ .dsnSecret.key | quote }}
              path: {{ .name | quote }}
      {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
