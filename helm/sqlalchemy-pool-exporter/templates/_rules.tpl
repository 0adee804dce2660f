{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* A value as text, in which a large number is never 1e+06. */}}
{{- define "sqlalchemy-pool-exporter.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* The groups of files/alerts.yml with the values' thresholds and switches. An unknown name or an
invalid value is an error: otherwise a misspelt switch would leave its alert on. */}}
{{- define "sqlalchemy-pool-exporter.ruleGroups" -}}
{{- $values := .Values.prometheusRule -}}
{{- $text := .Files.Get "files/alerts.yml" -}}
{{- $thresholds := (fromYaml $text).thresholds -}}
{{- range $name, $given := $values.thresholds -}}
{{- $value := include "sqlalchemy-pool-exporter.text" $given -}}
{{- if not (hasKey $thresholds $name) -}}
{{- fail (printf "prometheusRule.thresholds.%s: unknown; there are: %s" $name (keys $thresholds | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $threshold := get $thresholds $name -}}
{{- $kinds := dict "number" "^[0-9]+(\\.[0-9]+)?$" "duration" "^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$" "labels" "^[a-zA-Z_][a-zA-Z0-9_]*(, *[a-zA-Z_][a-zA-Z0-9_]*)*$" -}}
{{- $kind := "labels" -}}
{{- range list "duration" "number" -}}
{{- if regexMatch (get $kinds .) (include "sqlalchemy-pool-exporter.text" $threshold.value) }}{{ $kind = . }}{{ end -}}
{{- end -}}
{{- if not (and $value (regexMatch (get $kinds $kind) $value)) -}}
{{- fail (printf "prometheusRule.thresholds.%s: expected %s as %v is, got %q" $name (get (dict "number" "a number" "duration" "a duration" "labels" "labels") $kind) $threshold.value $value) -}}
{{- end -}}
{{- if and (eq $kind "duration") (not (hasSuffix "_for" $name)) (not (regexMatch "[1-9]" $value)) -}}
{{- fail (printf "prometheusRule.thresholds.%s: a window of nothing shows nothing" $name) -}}
{{- end -}}
{{- if and (hasKey $threshold "most") (gt (float64 $value) (float64 (get $threshold "most"))) -}}
{{- fail (printf "prometheusRule.thresholds.%s: expected at most %v, got %s" $name $threshold.most $value) -}}
{{- end -}}
{{- if hasKey $threshold "one_of" -}}
{{- if not (has $value (toStrings $threshold.one_of)) -}}
{{- fail (printf "prometheusRule.thresholds.%s: expected one of %s, got %s" $name (toStrings $threshold.one_of | join ", ") $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $threshold := $thresholds -}}
{{- $value := ternary (get $values.thresholds $name) $threshold.value (hasKey $values.thresholds $name) -}}
{{- $text = replace (printf "${%s}" $name) (include "sqlalchemy-pool-exporter.text" $value) $text -}}
{{- end -}}
{{- $tiers := dict -}}
{{- $groups := list -}}
{{- range $group := (fromYaml $text).groups -}}
{{- $rules := list -}}
{{- range $rule := $group.rules -}}
{{- if not (hasKey $rule "alert") -}}
{{- $rules = append $rules $rule -}}
{{- else -}}
{{- $_ := set $tiers $rule.alert (append (default list (get $tiers $rule.alert)) $rule.labels.severity) -}}
{{- $switches := default dict (get $values.alerts $rule.alert) -}}
{{- $tier := default dict (get $switches $rule.labels.severity) -}}
{{- if not (or $switches.disabled $tier.disabled) -}}
{{- $labels := merge (dict) (ternary (dict "severity" $tier.severity) (dict) (hasKey $tier "severity")) $rule.labels $values.alertLabels -}}
{{- $rule = merge (dict "labels" $labels) (ternary (dict "for" $tier.for) (dict) (hasKey $tier "for")) (omit $rule "labels") -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}
{{- $groups = append $groups (merge (dict "rules" $rules) $group) -}}
{{- end -}}
{{- end -}}
{{- range $name, $switches := $values.alerts -}}
{{- if not (hasKey $tiers $name) -}}
{{- fail (printf "prometheusRule.alerts.%s: unknown; there are: %s" $name (keys $tiers | sortAlpha | join ", ")) -}}
{{- end -}}
{{- range $tier, $_ := omit $switches "disabled" -}}
{{- if not (has $tier (get $tiers $name)) -}}
{{- fail (printf "prometheusRule.alerts.%s.%s: it has no such tier, only: %s" $name $tier (get $tiers $name | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end -}}
