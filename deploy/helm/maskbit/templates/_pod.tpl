{{/* What all pods have alike. */}}

{{/* Beginning of a pod: (dict "root" $ "security" $ids "priority" name). Service links would give pods variables
     such as MASKBIT_PORT=tcp://…, which the service would take for its settings. */}}
{{- define "maskbit.pod" -}}
serviceAccountName: {{ include "maskbit.serviceAccount" .root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .priority }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  runAsNonRoot: true
{{- range $key, $id := .security }}
{{- if not (kindIs "invalid" $id) }}
  {{ $key }}: {{ toJson $id }}
{{- end }}
{{- end }}
{{- if .security.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
{{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "maskbit.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
# A process that ends says why in its last line, which kubectl describe then shows.
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* PriorityClass: (dict "root" $ "given" name "of" "worker"). */}}
{{- define "maskbit.priority" -}}
{{- if .given }}{{ .given }}
{{- else if .root.Values.priorityClasses.create }}{{ include "maskbit.priorityClass" . }}
{{- end }}
{{- end }}

{{/* One that is made: its name is the whole cluster's, so it has the namespace too. */}}
{{- define "maskbit.priorityClass" -}}
{{ .root.Release.Namespace }}-{{ include "maskbit.fullname" .root }}-{{ .of }}
{{- end }}

{{/* Where a pod may run: (dict "root" $ "place" .Values.gateway "labels" $selector); "" of labels: one pod alone. */}}
{{- define "maskbit.placement" -}}
{{- with .place.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .place.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .place.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := .root.Values.topologySpread }}
{{- if and .labels $spread.enabled $spread.keys }}
topologySpreadConstraints:
{{- $labels := .labels }}
{{- range $spread.keys }}
  - topologyKey: {{ . | quote }}
    maxSkew: 1
    whenUnsatisfiable: {{ $spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- $labels | nindent 8 }}
    # In an upgrade the old pods do not count.
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{/* The CPU request of resources, rounded up; 0 without one. */}}
{{- define "maskbit.wholeCpus" -}}
{{ include "maskbit.number" (dig "requests" "cpu" 0 . | default 0) | float64 | ceil }}
{{- end }}

{{/* Resources with a GPU: (dict "resources" {…} "gpu" {resource, count}). */}}
{{- define "maskbit.resources" -}}
{{- $all := deepCopy .resources -}}
{{- if and .gpu .gpu.count -}}
{{- $limits := merge (dict .gpu.resource .gpu.count) ($all.limits | default dict) -}}
{{- $_ := set $all "limits" $limits -}}
{{- end -}}
{{ toYaml $all }}
{{- end }}
