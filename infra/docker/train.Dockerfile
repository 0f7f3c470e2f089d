# Not run in CI (no container runtime there); a test parses it.
# The training half on GPUs: Ray nodes and `python -m training run …`. No Prefect.
# Build from the project root: docker build -f infra/docker/train.Dockerfile -t fovea-train .
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_AUTH_MODE=disabled \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2 \
    RAY_TRAIN_ENABLE_PRINT_PATCH=0 \
    RAY_CHDIR_TO_TRIAL_DIR=0

# git: runs record the commit. ffmpeg: the shared libraries that torchcodec needs (encoding uses the wheel's binary).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git ffmpeg \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /fovea
COPY constraints.txt pyproject.toml README.md ./
# PyPI's torch for Linux is the CUDA build and brings its nvidia packages.
RUN pip install "$(grep -E '^torch==' constraints.txt)" "$(grep -E '^setuptools==' constraints.txt)" \
 && pip install -c constraints.txt "ray[default,train,tune]" mlflow "dvc[s3]" boto3 webdataset imageio-ffmpeg av \
      torchcodec opencv-python-headless simplejpeg numpy pandas pydantic pydantic-settings PyYAML typer rich \
      safetensors torchmetrics scikit-learn scipy matplotlib jinja2 networkx psycopg2-binary
COPY . .
RUN pip install --no-deps --no-build-isolation .

ENV FOVEA_ROOT=/fovea
CMD ["python", "-m", "training", "--help"]
