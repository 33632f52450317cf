# darts_sg on a CPU:  docker build -t darts_sg .  &&  docker run --rm -v "$PWD:/work" darts_sg genotype list
FROM python:3.12-slim AS wheel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN DARTS_SG_PREBUILT=1 pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH=2.13.0
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url https://download.pytorch.org/whl/cpu
# the wheel holds the compiled kernels, so this image needs no compiler
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/*.whl \
    && useradd --create-home --uid 1000 darts
USER darts
WORKDIR /work
ENTRYPOINT ["darts-sg"]
CMD ["--help"]
