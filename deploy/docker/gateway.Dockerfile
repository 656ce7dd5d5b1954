# The HTTP gateway: neither PyTorch nor weights. From the root of the repository:
#   docker build -f deploy/docker/gateway.Dockerfile -t maskbit-gateway --build-arg REVISION="$(git rev-parse HEAD)" .

# The digest decides; the tag is for people. Another base, such as a mirror's, is a build argument.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS dependencies
# pip reads these: an index of your own, or PIP_NO_INDEX=1 and a folder of wheels.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt deploy/docker/requirements.py pyproject.toml ./
# The environment has no pip of its own: the image's installs into it.
RUN python3 -m venv --without-pip /opt/maskbit \
    && python3 requirements.py gateway tracing > requirements.txt \
    && python3 -m pip --python /opt/maskbit/bin/python install --requirement requirements.txt

FROM dependencies AS package
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
COPY LICENSE README.md maskbit_cli.py ./
COPY export export
COPY models models
COPY service service
COPY training training
# A gateway reads of a bundle its bundle.json alone.
RUN python3 -m pip --python /opt/maskbit/bin/python install --no-deps --root /package . \
    && find /package -name '*.safetensors' -delete

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.description="HTTP gateway of MaskBit Serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.title="maskbit-gateway" \
      org.opencontainers.image.version="${VERSION}"
# /tmp is the only place to write to; a read-only container needs a tmpfs there.
ENV HOME=/tmp \
    MASKBIT_HOST=0.0.0.0 \
    PATH=/opt/maskbit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=dependencies /opt/maskbit /opt/maskbit
COPY --from=package /package/opt/maskbit /opt/maskbit
# A label that lies about the version fails the build.
RUN groupadd --gid 10001 maskbit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --no-log-init --shell /usr/sbin/nologin maskbit \
    && test "$(maskbit --version)" = "maskbit ${VERSION}"
USER 10001:10001
EXPOSE 8000
# Healthy is ready: Redis answers. Workers have a check of their own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["maskbit", "health", "gateway"]
ENTRYPOINT ["maskbit"]
CMD ["gateway"]
