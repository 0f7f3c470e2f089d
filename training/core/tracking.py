"""What goes into MLflow, and how: one run per stage execution.

Experiment = family, run = stage instance. Runs are written through the client with an explicit run id,
never through MLflow's global "active run", because a Ray worker writes into a run that the driver opened.
The tags of `TAGS` are the contract of `fovea lineage` and of the registry.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.settings import Settings

TAGS = (
    "stage",  # `adafocus_eval`
    "instance",  # `adafocus_eval@demo`
    "kind",  # fit, evaluate, search, trial (of a search), register
    "dataset",
    "git_commit",
    "git_dirty",
    "data_digest",  # of all shards
    "eval_data_digest",  # of the shards of the evaluated split
    "config_digest",
    "decoder",  # rung of the ladder
    "input_digest",  # config and dependencies: what a resumed run must share
    "flow_run_id",  # of Prefect, where a flow started the stage
    "overridden",
    "model_digest",  # of the model folder that the run made
    "upstream_model_digests",  # JSON, upstream → digest
    "dvc_deps",  # JSON, path → md5
    "hardware",
    "trial_group",  # of a search's trial: those it is compared with
    "trial_status",  # running, finished, stopped, failed
    "trial_error",
)
"""Tags of a run; a fact that is not known is left out, never written empty."""

MAX_PARAM = 6000
MAX_TAG = 8000
MAX_KEY = 250
_CUT = " … (cut; whole in config.json)"

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunRecord:
    """A run as the store has it."""

    run_id: str
    name: str
    experiment: str
    status: str
    start_time: float
    """Seconds since 1970."""
    end_time: float | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    """Last value of each."""


def quiet() -> None:
    """Turn MLflow's telemetry and its progress bars off, unless the environment asks for them.

    Has to come before the first import of MLflow, which reads these variables.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def client(tracking_uri: str) -> Any:
    """Return an `MlflowClient` of a store."""
    quiet()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the time of the block; the kernel frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def ensure_store(settings: Settings) -> str:
    """Create the MLflow store if there is none yet, and return its URI.

    Processes that open a new sqlite store at the same moment kill each other's migrations, so one creates
    it under a lock, in a temporary file that is renamed when complete; the others wait. A store of
    another kind (a server, Postgres) is opened once under the lock, for the same reason.
    """
    uri = settings.tracking_uri
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        if not path.exists():
            with file_lock(settings.work / "mlflow.lock"):
                if not path.exists():
                    _create_sqlite(path, _artifact_root(settings))
    elif not uri.startswith(("http://", "https://", "databricks")):
        with file_lock(settings.work / "mlflow.lock"):
            client(uri).search_experiments(max_results=1)
    return uri


def _artifact_root(settings: Settings) -> str:
    return str(settings.root.absolute() / "mlruns")


def _create_sqlite(path: Path, artifact_root: str) -> None:
    """Create the tables in `<path>.new` and rename: a killed process leaves no half-made store."""
    quiet()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{new}", artifact_root)
    store.engine.dispose()
    os.replace(new, path)


def git_facts(root: Path) -> dict[str, str]:
    """Return tags `git_commit` and `git_dirty` of a checkout; empty where there is no commit to name."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=root, capture_output=True, text=True, timeout=30
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    if commit.returncode != 0 or status.returncode != 0:
        return {}
    return {"git_commit": commit.stdout.strip(), "git_dirty": "true" if status.stdout.strip() else "false"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn a nested config into dotted MLflow parameters; lists become JSON, long values are cut with a note."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name[:MAX_KEY]] = _fit(text, MAX_PARAM)
    return flat


def _fit(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def _experiment_id(settings: Settings, name: str) -> str:
    """Return the id of an experiment, making it (with an absolute artifact location) if it is new."""
    from mlflow.exceptions import MlflowException

    uri = settings.tracking_uri
    mlflow = client(uri)
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            # A server chooses its own place; a local store must not depend on the current folder.
            location = None if uri.startswith(("http://", "https://")) else f"{_artifact_root(settings)}/{name}"
            return str(mlflow.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = mlflow.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise RuntimeError(f"MLflow experiment {name!r} was deleted; restore it: `mlflow experiments restore`")
    return str(found.experiment_id)


@dataclass(frozen=True)
class Run:
    """A handle on one run; cheap, picklable, usable from any process that reaches the store."""

    tracking_uri: str
    run_id: str

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log figures of one step in one request; not-a-number is logged as such.

        Without a step they are those of the whole run: of its last step, where `train/steps` among them says which.
        """
        from mlflow.entities import Metric

        at = int(values.get("train/steps", 0)) if step is None else step
        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, at) for key, value in values.items()]
        for start in range(0, len(items), 1000):
            self._write(metrics=items[start : start + 1000])

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log a (nested) config, flattened; parameters that a resumed run already has are left as they are."""
        from mlflow.entities import Param

        present = client(self.tracking_uri).get_run(self.run_id).data.params
        items = [Param(key, value) for key, value in flatten(values).items() if key not in present]
        for start in range(0, len(items), 100):
            self._write(params=items[start : start + 100])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a fact without a value is left out, never written as an empty string."""
        from mlflow.entities import RunTag

        items = [RunTag(key, _fit(str(value), MAX_TAG)) for key, value in tags.items() if str(value) != ""]
        for start in range(0, len(items), 100):
            self._write(tags=items[start : start + 100])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store one file."""
        client(self.tracking_uri).log_artifact(self.run_id, str(path), folder)

    def log_artifacts(self, folder: Path, target: str | None = None) -> None:
        """Store a folder's content."""
        client(self.tracking_uri).log_artifacts(self.run_id, str(folder), target)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as a file."""
        client(self.tracking_uri).log_text(self.run_id, text, name)

    def log_table(self, rows: Mapping[str, list[Any]], name: str) -> None:
        """Store columns as a JSON table, which MLflow's page shows as one; an earlier one is replaced."""
        table = {"columns": list(rows), "data": [list(row) for row in zip(*rows.values(), strict=True)]}
        client(self.tracking_uri).log_text(self.run_id, json.dumps(table), name)
        # The tag by which MLflow's page knows which artifacts are tables.
        tag = json.dumps([{"path": name, "type": "table"}])
        client(self.tracking_uri).set_tag(self.run_id, "mlflow.loggedArtifacts", tag)

    def log_figure(self, figure: Any, name: str) -> None:
        """Store a matplotlib figure (`name` ends in .png, .svg or .html)."""
        client(self.tracking_uri).log_figure(self.run_id, figure, name)

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run."""
        client(self.tracking_uri).set_terminated(self.run_id, status)

    def record(self) -> RunRecord:
        """Read the run back."""
        return _record(client(self.tracking_uri), client(self.tracking_uri).get_run(self.run_id))

    def _write(self, **batch: Any) -> None:
        """Write one batch; a sqlite store that another process is writing to is tried again."""
        from mlflow.exceptions import MlflowException

        for attempt in range(6):
            try:
                client(self.tracking_uri).log_batch(self.run_id, **batch)
                return
            except MlflowException as error:
                if "database is locked" not in str(error) or attempt == 5:
                    raise
                time.sleep(0.2 * 2**attempt)


def start_run(
    settings: Settings,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    resume_tag: tuple[str, str] | None = None,
    parent_run_id: str | None = None,
) -> Run:
    """Open a run.

    Args:
        settings: where the store is.
        experiment: the family.
        name: the stage instance.
        tags: see `TAGS`.
        params: the resolved config, nested.
        resume_tag: (tag, value); an unfinished run of this name with this tag is opened again instead of
            making a second one, so that a killed stage continues its curves.
        parent_run_id: makes the run a child of another one; a child of this name is opened again, whatever its state.
    """
    uri = ensure_store(settings)
    mlflow = client(uri)
    experiment_id = _experiment_id(settings, experiment)
    run_id = None
    if parent_run_id is not None:
        tags = {**tags, "mlflow.parentRunId": parent_run_id}
        same = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
    elif resume_tag is not None:
        tags = {**tags, resume_tag[0]: resume_tag[1]}
        same = f"tags.`{resume_tag[0]}` = '{resume_tag[1]}' and attributes.status != 'FINISHED'"
    if parent_run_id is not None or resume_tag is not None:
        same += f" and attributes.run_name = '{name}'"
        found = mlflow.search_runs([experiment_id], same, order_by=["attributes.start_time DESC"], max_results=1)
        run_id = found[0].info.run_id if found else None
    if run_id is None:
        run_id = mlflow.create_run(experiment_id, run_name=name).info.run_id
    else:
        mlflow.update_run(run_id, status="RUNNING")
    run = Run(uri, str(run_id))
    run.set_tags(tags)
    run.log_params(params)
    return run


def attach_run(tracking_uri: str, run_id: str) -> Run:
    """Return a handle on a run that another process opened."""
    return Run(tracking_uri, run_id)


def _record(mlflow: Any, run: Any) -> RunRecord:
    info = run.info
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or "",
        experiment=mlflow.get_experiment(info.experiment_id).name,
        status=info.status,
        start_time=info.start_time / 1000,
        end_time=None if info.end_time is None else info.end_time / 1000,
        tags={key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def find_runs(settings: Settings, tags: Mapping[str, str], *, finished: bool = False) -> list[RunRecord]:
    """Return runs of any experiment that carry all the tags, newest first."""
    uri = ensure_store(settings)
    mlflow = client(uri)
    clauses = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    if finished:
        clauses.append("attributes.status = 'FINISHED'")
    experiments = [item.experiment_id for item in mlflow.search_experiments()]
    if not experiments:
        return []
    runs = mlflow.search_runs(experiments, " and ".join(clauses), order_by=["attributes.start_time DESC"])
    return [_record(mlflow, run) for run in runs]


def read_run(settings: Settings, run_id: str) -> RunRecord | None:
    """Return a run by id, or None where the store has none of that id."""
    from mlflow.exceptions import MlflowException

    mlflow = client(ensure_store(settings))
    try:
        return _record(mlflow, mlflow.get_run(run_id))
    except MlflowException:
        return None


def metric_history(settings: Settings, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric in order of steps.

    A run that was killed and resumed logs some steps twice; the later value counts. Not-a-number is kept.
    """
    points: dict[int, tuple[int, float]] = {}
    for item in client(ensure_store(settings)).get_metric_history(run_id, key):
        if item.step not in points or item.timestamp >= points[item.step][0]:
            points[item.step] = (item.timestamp, math.nan if item.value is None else float(item.value))
    return [(step, points[step][1]) for step in sorted(points)]


def download_artifacts(settings: Settings, run_id: str, path: str, target: Path) -> Path:
    """Fetch an artifact (file or folder) of a run below `target`, and return where it lies."""
    target.mkdir(parents=True, exist_ok=True)
    return Path(client(ensure_store(settings)).download_artifacts(run_id, path, str(target)))


def list_artifacts(settings: Settings, run_id: str, folder: str | None = None) -> list[str]:
    """Return the paths of a run's artifacts in one folder."""
    return [item.path for item in client(ensure_store(settings)).list_artifacts(run_id, folder)]
