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
