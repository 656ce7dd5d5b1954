{{/* The number that a quantity of Kubernetes (1536Mi, 250m) or of Redis (512mb) stands for. */}}
{{- define "maskbit.number" -}}
{{- $quantity := toString . -}}
{{- $unit := regexFind "[A-Za-z]*$" $quantity -}}
{{- $factors := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 -}}
{{- $factors = merge $factors (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624) -}}
{{- $factors = merge $factors (dict "kb" 1024 "mb" 1048576 "gb" 1073741824) -}}
{{- mulf (trimSuffix $unit $quantity) (get $factors $unit) -}}
{{- end }}

{{/* Fails if a request is more than its limit. */}}
{{- define "maskbit.checkResources" -}}
{{- $requests := .resources.requests | default dict }}
{{- range $kind, $limit := .resources.limits }}
{{- $request := get $requests $kind }}
{{- if and $limit $request (gt (include "maskbit.number" $request | float64) (include "maskbit.number" $limit | float64)) }}
{{- fail (printf "%s.resources.limits.%s is %v; at least resources.requests.%s, %v, is allowed" $.path $kind $limit $kind $request) }}
{{- end }}
{{- end }}
{{- end }}
