# The service as an image, for a CPU (target `cpu`) and for an NVIDIA GPU (target `gpu`); docker/README.md says how to use it.
# Each has three stages: TARGET-torch has the runtime's Python with PyTorch, TARGET-build compiles wheels against it and is
# thrown away, TARGET installs them. PyTorch, nearly all of the size, is a layer that a change of the code leaves as it is.

ARG CPU_BASE=python:3.11-slim-bookworm
# Both of one distribution, so that what is compiled on the first runs on the second; CUDA's major version is that of torch.
ARG CUDA_DEVEL=nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG CUDA_BASE=nvidia/cuda:13.0.2-base-ubuntu24.04


FROM ${CPU_BASE} AS cpu-torch
# The index that has PyTorch's CPU build; its versions end in +cpu. Not needed where the secret pip.conf says where that is.
ARG CPU_TORCH_INDEX=""
RUN --mount=type=bind,source=requirements.lock,target=/mnt/requirements.lock \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/exodus \
    && sed -E 's/^(torch==[^+]*).*/\1+cpu/' /mnt/requirements.lock > /opt/exodus/constraints.txt \
    && /opt/exodus/bin/pip install --no-cache-dir --constraint /opt/exodus/constraints.txt \
        ${CPU_TORCH_INDEX:+--extra-index-url "$CPU_TORCH_INDEX"} torch numpy


FROM cpu-torch AS cpu-build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN /opt/exodus/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels \
        ./exodus_core ./client ./service


FROM cpu-torch AS cpu
RUN --mount=type=bind,from=cpu-build,source=/wheels,target=/mnt/wheels \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/exodus/bin/pip install --no-cache-dir --constraint /opt/exodus/constraints.txt /mnt/wheels/*.whl \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin exodus \
    && install --directory --owner exodus --group exodus --mode 700 /var/lib/exodus
COPY LICENSE /opt/exodus/LICENSE
ENV PATH=/opt/exodus/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    EXODUS_HOST=0.0.0.0 EXODUS_PORT=8000 EXODUS_DEVICE=cpu
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['EXODUS_PORT']), timeout=2); c.request('GET', '/livez'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["exodus-service"]
CMD ["serve"]
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="exodus-service" \
      org.opencontainers.image.description="HTTP server for gradients of spiking neural networks, on the CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"


FROM ${CUDA_BASE} AS gpu-torch
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=requirements.lock,target=/mnt/requirements.lock \
    --mount=type=bind,source=docker/gpu.lock,target=/mnt/gpu.lock \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/exodus \
    && sed -E 's/^(torch==[^+]*).*/\1/' /mnt/requirements.lock > /opt/exodus/constraints.txt \
    && /opt/exodus/bin/pip install --no-cache-dir --constraint /opt/exodus/constraints.txt \
        --requirement /mnt/gpu.lock numpy


FROM ${CUDA_DEVEL} AS gpu-build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# From Turing to Blackwell; +PTX lets the driver compile for what comes after.
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# No GPU is visible here; the CUDA library is built all the same, and the image is of no use without it.
RUN --mount=type=bind,from=gpu-torch,source=/opt/exodus,target=/opt/exodus \
    CUDA_HOME=/usr/local/cuda EXODUS_FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$TORCH_CUDA_ARCH_LIST" \
        /opt/exodus/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels \
        ./exodus_core ./client ./service \
    && python3 -m zipfile --list /wheels/exodus_core-*.whl | grep _C_cuda


FROM gpu-torch AS gpu
RUN --mount=type=bind,from=gpu-build,source=/wheels,target=/mnt/wheels \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/exodus/bin/pip install --no-cache-dir --constraint /opt/exodus/constraints.txt /mnt/wheels/*.whl \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin exodus \
    && install --directory --owner exodus --group exodus --mode 700 /var/lib/exodus
COPY LICENSE /opt/exodus/LICENSE
ENV PATH=/opt/exodus/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    EXODUS_HOST=0.0.0.0 EXODUS_PORT=8000 EXODUS_DEVICE=cuda
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['EXODUS_PORT']), timeout=2); c.request('GET', '/livez'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["exodus-service"]
CMD ["serve"]
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="exodus-service" \
      org.opencontainers.image.description="HTTP server for gradients of spiking neural networks, on an NVIDIA GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
