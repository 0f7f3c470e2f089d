# Not run in CI (no container runtime there); a test parses it.
# The orchestrating half: Prefect server and worker, ingest, DVC. No torch: the flows and `fovea data …` never import
# it. A worker that runs `reproduce` also starts the training stages, whose commands do; build that one with
# --build-arg TRAINING=1.
#   docker build -f infra/docker/orchestrator.Dockerfile -t fovea-orchestrator .
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    RAY_AUTH_MODE=disabled \
    RAY_USAGE_STATS_ENABLED=0

# git: DVC works in a git repository.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /fovea
COPY constraints.txt pyproject.toml README.md ./
# The packages of pyproject.toml without torch and what only training uses; versions come from constraints.txt.
RUN pip install "$(grep -E '^setuptools==' constraints.txt)" \
 && pip install -c constraints.txt "ray[default]" prefect fastapi "dvc[s3]" boto3 webdataset ffmpeg-python \
      imageio-ffmpeg av opencv-python-headless simplejpeg numpy pandas pydantic pydantic-settings PyYAML typer rich \
      jinja2 matplotlib networkx asyncpg
ARG TRAINING=0
RUN if [ "$TRAINING" = 1 ]; then pip install "$(grep -E '^torch==' constraints.txt)" \
 && pip install -c constraints.txt "ray[train,tune]" mlflow safetensors torchmetrics scikit-learn scipy; fi
COPY . .
RUN pip install --no-deps --no-build-isolation .

ENV FOVEA_ROOT=/fovea
CMD ["prefect", "worker", "start", "--pool", "fovea", "--limit", "1"]
