{{/* Models: where their bundles are, and the workers of each. */}}

{{/* Fields of one model's workers, as JSON: (dict "root" $ "model" .). */}}
{{- define "maskbit.worker" -}}
{{ mergeOverwrite (deepCopy .root.Values.worker) (deepCopy (.model.worker | default dict)) | toJson }}
{{- end }}

{{- define "maskbit.workerName" -}}
{{ include "maskbit.fullname" .root }}-worker-{{ .model.name }}
{{- end }}

{{- define "maskbit.hubRef" -}}
hf://{{ .ref }}@{{ .revision }}
{{- end }}

{{/* What a worker calls its bundle. */}}
{{- define "maskbit.workerBundle" -}}
{{- if eq .bundle.source "pvc" }}/bundles/{{ .name }}/{{ .bundle.ref }}
{{- else if eq .bundle.source "hub" }}{{ include "maskbit.hubRef" .bundle }}
{{- else }}{{ .bundle.ref }}
{{- end }}
{{- end }}

{{/* What a gateway calls it: it needs the bundle.json alone. */}}
{{- define "maskbit.gatewayBundle" -}}
{{- if .bundle.manifestConfigMap }}/bundles/{{ .name }}
{{- else if eq .bundle.source "hub" }}/manifests/{{ .name }}
{{- else }}{{ include "maskbit.workerBundle" . }}
{{- end }}
{{- end }}

{{/* Whether gateways get a bundle.json from the Hub. */}}
{{- define "maskbit.hubManifests" -}}
{{- range .Values.models }}
{{- if and (eq .bundle.source "hub") (not .bundle.manifestConfigMap) }}true{{ end }}
{{- end }}
{{- end }}

{{/* Whether some bundle comes from the Hub. */}}
{{- define "maskbit.hub" -}}
{{- range .Values.models }}{{ if eq .bundle.source "hub" }}true{{ end }}{{ end }}
{{- end }}

{{/* A claim is mounted as a whole: a new revision replaces the folder, which a mount of the folder would not see. */}}
{{- define "maskbit.bundleMount" -}}
- name: bundle-{{ .name }}
  mountPath: /bundles/{{ .name }}
  readOnly: true
{{- end }}

{{- define "maskbit.bundleVolume" -}}
- name: bundle-{{ .name }}
  persistentVolumeClaim:
    claimName: {{ .bundle.claim | quote }}
    readOnly: true
{{- end }}

{{- define "maskbit.hubVolume" -}}
- name: hub
{{- $cache := .Values.hub.cache }}
{{- if $cache.enabled }}
  persistentVolumeClaim:
    claimName: {{ $cache.existingClaim | default (printf "%s-hub" (include "maskbit.fullname" .)) | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ $cache.size | quote }}
{{- end }}
{{- end }}

{{/* Of a container that downloads: (dict "root" $ "offline" bool). What was found may then be used offline. */}}
{{- define "maskbit.hubEnv" -}}
- name: HF_HOME
  value: /bundles/hub
{{- if .offline }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- else }}
- name: HF_ENDPOINT
  value: {{ .root.Values.hub.endpoint | quote }}
{{- with .root.Values.hub.token }}
{{- if .secret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Port of the Hub. */}}
{{- define "maskbit.hubPort" -}}
{{- $url := urlParse .Values.hub.endpoint -}}
{{ regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") }}
{{- end }}

{{/* Address of Triton for workers; empty if there is none. */}}
{{- define "maskbit.tritonUrl" -}}
{{- if .Values.triton.enabled }}grpc://{{ include "maskbit.fullname" . }}-triton:8001
{{- else }}{{ .Values.triton.externalUrl }}
{{- end }}
{{- end }}

{{/* Whether a worker with these fields uses it: (dict "root" $ "worker" {…}). */}}
{{- define "maskbit.usesTriton" -}}
{{- if and (include "maskbit.tritonUrl" .root) (has (.worker.settings.runtime | default "auto") (list "auto" "triton")) }}true{{ end }}
{{- end }}
