{{/* Names, labels and images. Selectors have the labels of `maskbit.selector` alone: they must never change. */}}

{{- define "maskbit.name" -}}
{{ .Values.nameOverride | default .Chart.Name }}
{{- end }}

{{- define "maskbit.fullname" -}}
{{- $name := include "maskbit.name" . -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}{{ .Release.Name }}
{{- else }}{{ .Release.Name }}-{{ $name }}
{{- end }}
{{- end }}

{{- define "maskbit.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "maskbit.fullname" .) "default") }}
{{- end }}

{{/* Of all pods of the release. */}}
{{- define "maskbit.selector" -}}
app.kubernetes.io/name: {{ include "maskbit.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of an object. */}}
{{- define "maskbit.labels" -}}
{{ include "maskbit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Of a pod: (dict "root" $ "component" "gateway" "given" {…}). No version, or every upgrade would start Redis anew. */}}
{{- define "maskbit.podLabels" -}}
{{ include "maskbit.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with merge dict (.given | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Image of ours: (dict "root" $ "image" .Values.images.gateway). */}}
{{- define "maskbit.image" -}}
{{- $all := .root.Values.images -}}
{{- $name := list $all.registry .image.repository | compact | join "/" -}}
{{ include "maskbit.foreignImage" (dict "repository" $name "digest" .image.digest "tag" ($all.tag | default .root.Chart.AppVersion)) }}
{{- end }}

{{- define "maskbit.foreignImage" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}
