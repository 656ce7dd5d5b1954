{{/* Environment variables. */}}

{{/* Settings as in service/settings.py: (dict "slots" 16) gives MASKBIT_SLOTS; null is left to the service. */}}
{{- define "maskbit.settings" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
- name: MASKBIT_{{ upper $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What gateways and workers must have alike. */}}
{{- define "maskbit.sharedEnv" -}}
{{- include "maskbit.redisEnv" . }}
{{- include "maskbit.settings" .Values.queue }}
{{- include "maskbit.settings" (dict "drain_s" .Values.drainSeconds "host" .Values.listenAddress "log_format" .Values.log.format "log_level" .Values.log.level) }}
{{- with .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{ include "maskbit.homeEnv" . }}
{{- end }}

{{/* The only folder that may be written to. */}}
{{- define "maskbit.homeEnv" -}}
- name: HOME
  value: /tmp
{{- end }}

{{/* The password comes first: Kubernetes puts it into the URL, so it is in no manifest. */}}
{{- define "maskbit.redisEnv" -}}
{{- with .Values.redis.password }}
{{- if .secret }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
{{- end }}
{{- end }}
- name: MASKBIT_REDIS_URL
  value: {{ include "maskbit.redisUrl" . | quote }}
{{- end }}

{{- define "maskbit.redisUrl" -}}
{{- $external := .Values.redis.external -}}
{{- $password := "" -}}
{{- if .Values.redis.password.secret }}{{ $password = ":$(REDIS_PASSWORD)@" }}{{ end -}}
{{- if eq .Values.redis.mode "internal" -}}
redis://{{ $password }}{{ include "maskbit.fullname" . }}-redis:6379/0
{{- else -}}
{{- $tls := $external.tls -}}
{{- $query := list -}}
{{- if $tls.caSecret }}{{ $query = append $query "ssl_ca_certs=/etc/maskbit/redis-ca/ca.crt" }}{{ end -}}
{{- if $tls.certSecret }}{{ $query = concat $query (list "ssl_certfile=/etc/maskbit/redis-tls/tls.crt" "ssl_keyfile=/etc/maskbit/redis-tls/tls.key") }}{{ end -}}
{{ $tls.enabled | ternary "rediss" "redis" }}://{{ $external.username }}{{ $password }}{{ $external.host }}:{{ toJson $external.port }}/{{ toJson $external.database }}{{ with $query }}?{{ join "&" . }}{{ end }}
{{- end -}}
{{- end }}

{{/* Certificates for an external Redis. */}}
{{- define "maskbit.redisMounts" -}}
{{- if eq .Values.redis.mode "external" }}
{{- with .Values.redis.external.tls }}
{{- if .caSecret }}
- name: redis-ca
  mountPath: /etc/maskbit/redis-ca
  readOnly: true
{{- end }}
{{- if .certSecret }}
- name: redis-tls
  mountPath: /etc/maskbit/redis-tls
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "maskbit.redisVolumes" -}}
{{- if eq .Values.redis.mode "external" }}
{{- with .Values.redis.external.tls }}
{{- if .caSecret }}
- name: redis-ca
  secret:
    secretName: {{ .caSecret | quote }}
{{- end }}
{{- if .certSecret }}
- name: redis-tls
  secret:
    secretName: {{ .certSecret | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
