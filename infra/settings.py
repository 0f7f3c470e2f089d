"""Settings of the environment: where things are and how services are reached. Nothing scientific.

Read once by a process's entry point and handed down. Every field can be set by an environment
variable with the prefix `FOVEA_` or in a `.env` file of the project root.
"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _find_root() -> Path:
    """Return the nearest folder upward from the current one that holds a project, else the current one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists() and (folder / "params").is_dir():
            return folder
    return here


class Settings(BaseSettings):
    """Roots and addresses."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_", env_file=".env", extra="ignore", frozen=True)

    root: Path = Field(default_factory=_find_root)
    """Project root; all relative paths of the project are below it."""
    ffmpeg: str | None = None
    """Path of an ffmpeg to use instead of the wheel's static one (then it is part of the shard digest)."""
    mlflow_tracking_uri: str | None = None
    """Default: a sqlite store below the root."""
    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    """A running cluster; None starts a local one."""
    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    s3_endpoint_url: str | None = Field(default=None, validation_alias="AWS_ENDPOINT_URL")
    train_workers: int = Field(default=1, ge=0)
    """Ray Train workers per fit; 0 trains inside the calling process, without Ray."""
    train_cpus_per_worker: int = Field(default=2, ge=1)
    train_gpu: bool | None = None
    """One GPU per worker; None: if this machine has one."""
    train_max_failures: int = 3
    """How often a fit is restarted from its last checkpoint after a worker or node died."""
    search_trials: int | None = Field(default=None, ge=1)
    """Trials of a search that train at the same time; None: as many as the machine or the cluster has room for."""
    allow_decoder_change: bool = False
    """Resume a checkpoint that another rung of the decoder ladder made (D8); also through `dvc repro`."""
    device: str | None = None
    """Device of in-process work (`cpu`, `cuda`); None chooses."""
    progress: bool = True
    """Draw progress bars (to stderr)."""

    @property
    def shards(self) -> Path:
        """Folder of all shard sets."""
        return self.root / "data" / "shards"

    @property
    def manifests(self) -> Path:
        """Folder of source listings."""
        return self.root / "data" / "manifests"

    @property
    def runs(self) -> Path:
        """Folder of stage outputs."""
        return self.root / "runs"

    @property
    def work(self) -> Path:
        """Work in progress; never a DVC output (D2)."""
        return self.root / ".work"

    @property
    def reports(self) -> Path:
        """Static pages."""
        return self.root / "reports"

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.root / 'mlflow.db'}"
