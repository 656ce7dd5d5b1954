# A worker that computes on an NVIDIA GPU: CUDA 13, PyTorch, ONNX Runtime and TensorRT.
# NEVER BUILT YET: the project's own machines have no GPU and do not reach NVIDIA's package index. What is checked is
# this file's form, and that its packages, but for TensorRT's libraries, can be installed together.
# From the root of the repository:
#   docker build -f deploy/docker/worker-gpu.Dockerfile -t maskbit-worker-gpu --build-arg REVISION="$(git rev-parse HEAD)" .
# TensorRT plans fit one kind of GPU and are built there: docker run … maskbit-worker-gpu export tensorrt /bundles/NAME

# CUDA's runtime, cuBLAS and cuDNN come as packages that PyTorch's wheels name; a base image of CUDA's would hold them
# twice. The host needs the NVIDIA driver and container toolkit.
# The digest decides; the tag is for people. Another base, such as a mirror's, is a build argument.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS dependencies
# pip reads these: an index of your own, or PIP_NO_INDEX=1 and a folder of wheels. The second index has TensorRT.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://pypi.nvidia.com
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_CONSTRAINT="/src/constraints.txt /src/constraints-gpu.txt" \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt deploy/docker/constraints-gpu.txt deploy/docker/requirements.py pyproject.toml ./
# The environment has no pip of its own: the image's installs into it. PyTorch's headers and tests stay behind.
RUN python3 -m venv --without-pip /opt/maskbit \
    && python3 requirements.py export tensorrt triton tracing > requirements.txt \
    && python3 -m pip --python /opt/maskbit/bin/python install --requirement requirements.txt onnxruntime-gpu \
    && rm -r /opt/maskbit/lib/python3*/site-packages/torch/include /opt/maskbit/lib/python3*/site-packages/torch/test \
    && find /opt/maskbit/lib/python3*/site-packages/torch/bin -mindepth 1 ! -name torch_shm_manager -delete \
    && /opt/maskbit/bin/python -c 'import torch; assert torch.version.cuda, torch.__version__'

FROM dependencies AS package
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
COPY LICENSE README.md maskbit_cli.py ./
COPY export export
COPY models models
COPY service service
COPY training training
RUN python3 -m pip --python /opt/maskbit/bin/python install --no-deps --root /package .

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.description="Worker of MaskBit Serve for NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.title="maskbit-worker-gpu" \
      org.opencontainers.image.version="${VERSION}"
# Written to are /tmp and, for bundles of the Hub, /bundles/hub: a read-only container needs mounts there.
# A GPU is asked for by name, so that a container without one fails at its start and does not draw on a CPU.
ENV HF_HOME=/bundles/hub \
    HOME=/tmp \
    MASKBIT_DEVICE=cuda \
    MASKBIT_HOST=0.0.0.0 \
    MASKBIT_METRICS_PORT=9090 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PATH=/opt/maskbit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=dependencies /opt/maskbit /opt/maskbit
COPY --from=package /package/opt/maskbit /opt/maskbit
# A label that lies about the version fails the build.
RUN groupadd --gid 10001 maskbit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --no-log-init --shell /usr/sbin/nologin maskbit \
    && install --directory --owner 10001 --group 10001 /bundles \
    && test "$(maskbit --version)" = "maskbit ${VERSION}"
USER 10001:10001
EXPOSE 9090
# Healthy is ready: the weights are loaded and warm, and Redis answers. Warming up every batch size takes a while.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=3 CMD ["maskbit", "health", "worker"]
ENTRYPOINT ["maskbit"]
CMD ["worker"]
