"""Where a fit runs: Ray Train workers, local or on a cluster. The only file that imports `ray.train`.

The worker entry is a module-level function whose argument is a plain dict with absolute paths, because
Ray workers start in another directory and may run on another machine. Results are files in the work
folder, never Ray's `Result.metrics`. Checkpoints are our own folders in the work folder (shared storage on a
cluster), so a restart of one worker, of the group and of the whole driver are the same thing: the newest
valid checkpoint is loaded.
"""

import contextlib
import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import training
from data_specs.files import sha256_of
from infra.environment import apply_defaults
from infra.settings import Settings
from training.core.checkpoint import save_model
from training.core.config import DataConfig, FitConfig, validate
from training.core.data import ClipLoader, open_loader
from training.core.distributed import Group
from training.core.evaluate import evaluate
from training.core.failures import StageFailed
from training.core.loop import Hooks, fit
from training.core.progress import progress_bar, write_progress
from training.core.stage import StageInputs
from training.core.system import Logger, System

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitJob:
    """Everything a worker needs; travels as a dict."""

    stage: str
    dataset: str
    name: str
    """Ray run name, `<stage>-<input digest>`: the same inputs resume, other inputs start afresh (D2)."""
    config: dict[str, Any]
    classes: list[str]
    root: str
    """Project root; weight files are below it."""
    shards: str
    upstream: dict[str, str]
    work: str
    tracking: dict[str, str] | None
    """MLflow tracking URI and run id."""
    source_digest: str
    """Fingerprint of the driver's `training` package; a worker with another one refuses to run."""
    cpus: int
    allow_decoder_change: bool
    """Resume a checkpoint that another rung of the decoder ladder made."""


def source_digest() -> str:
    """Return a fingerprint of the installed `training` package."""
    import hashlib

    root = Path(training.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}:{sha256_of(path)}\n".encode())
    return total.hexdigest()[:16]


def run_fit(job: FitJob, settings: Settings) -> None:
    """Train on Ray workers (or in this process when `settings.train_workers` is 0).

    Results lie in `job.work/result/`: `model/`, `metrics.json`, `predictions.npz`.

    Raises:
        StageFailed: the training raised, or workers died more often than `settings.train_max_failures`.
    """
    note = Path(job.work) / "fatal.txt"
    note.unlink(missing_ok=True)
    with progress_bar(Path(job.work) / "progress.json", job.stage, settings.progress):
        try:
            if settings.train_workers == 0:
                train_worker(asdict(job))
            else:
                _run_on_ray(job, settings)
        except Exception as error:
            if not note.exists():
                raise StageFailed(f"training of {job.name} failed after restarts: {error}") from error
    if note.exists():
        message, _, trace = note.read_text().partition("\n\n")
        log.error("%s", trace)
        raise StageFailed(f"training of {job.name} failed: {message}")


@contextlib.contextmanager
def ray_session(settings: Settings, num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster of the settings, or start a Ray of this machine that ends with the block.

    Args:
        settings: says which cluster.
        num_cpus: CPUs that a Ray of this machine offers; None: as many as it has.
    """
    apply_defaults()  # before Ray is imported, in whatever way this process was started
    import ray

    if settings.ray_address:
        ray.init(address=settings.ray_address, logging_level=logging.WARNING, log_to_driver=False)
    elif not ray.is_initialized():
        # One machine: nothing can be preempted and no metrics are scraped; each would be a process more to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            # Without the dashboard one of Ray's actors complains every second; workers log to a file instead.
            log_to_driver=False,
        )
    try:
        yield
    finally:
        ray.shutdown()


def worker_resources(settings: Settings) -> dict[str, float]:
    """Return what Ray sets aside for one training process, under Ray's names."""
    gpu = torch.cuda.is_available() if settings.train_gpu is None else settings.train_gpu
    return {"CPU": settings.train_cpus_per_worker, **({"GPU": 1} if gpu else {})}


def _run_on_ray(job: FitJob, settings: Settings) -> None:
    with ray_session(settings, settings.train_workers * settings.train_cpus_per_worker):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = worker_resources(settings)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=asdict(job),
            scaling_config=ScalingConfig(
                num_workers=settings.train_workers, use_gpu="GPU" in resources, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=str(Path(job.work) / "ray"),
                failure_config=FailureConfig(max_failures=settings.train_max_failures),
            ),
        )
        trainer.fit()


FATAL = (ValueError, TypeError, LookupError, AssertionError, OSError, ImportError, StageFailed)
"""Errors that a restart would only repeat, unlike a peer that died in a collective."""


def train_worker(values: dict[str, Any], after_evaluation: Logger | None = None) -> None:
    """Entry of every worker; an error that a restart cannot mend ends the fit instead of repeating it.

    Args:
        values: a `FitJob` as a dict.
        after_evaluation: called on rank 0 with (step, metrics) after each evaluation of the fit.
    """
    job = FitJob(**values)
    note = Path(job.work) / "fatal.txt"
    if note.exists():  # a restart after such an error: nothing to do but to end
        return
    group = _group()
    try:
        with _log_to_file(Path(job.work) / f"worker-{group.rank}.log"):
            _train(job, group, after_evaluation)
    except FATAL as error:
        note_error(note, error)
        if group.world > 1:  # the others may wait in a collective; only a restart of the group frees them
            raise


def note_error(note: Path, error: BaseException) -> None:
    """Write the error that is being handled: its message, an empty line, the stack trace."""
    note.write_text(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")


def _train(job: FitJob, group: Group, after_evaluation: Logger | None) -> None:
    """Build, fit, evaluate, write the result (rank 0)."""
    here = source_digest()
    log.info("training from %s (%s), rank %d of %d", training.__file__, here, group.rank, group.world)
    if here != job.source_digest:
        raise StageFailed(
            f"this worker's training package ({training.__file__}, {here}) differs from the driver's "
            f"({job.source_digest}); install the same commit on every node or ship it with runtime_env"
        )
    torch.set_num_threads(job.cpus)
    from training.registry import all_stages

    stage = all_stages()[job.stage]
    config = validate(stage.config, job.config, f"config of {job.stage}")
    fit_config: FitConfig = config.fit  # type: ignore[attr-defined]
    torch.manual_seed(fit_config.seed)  # initial weights: the same on every rank
    system = stage.build(
        StageInputs(
            config=config,
            classes=tuple(job.classes),
            upstream={name: Path(path) for name, path in job.upstream.items()},
            root=Path(job.root),
        )
    )
    device = _device()
    loader = _train_loader(job, config.data, fit_config, group, pin=device.type == "cuda")
    work = Path(job.work)

    def run_evaluation(candidate: System, split: str) -> Any:
        with contextlib.closing(
            open_loader(
                Path(job.shards),
                config.data,
                split=split,
                train=False,
                seed=fit_config.seed,
                rank=group.rank,
                world=group.world,
            )
        ) as val:
            return evaluate(candidate, val, split=split, device=device, precision=fit_config.precision, group=group)

    write_metrics = _logger(job, work, fit_config.steps) if group.rank == 0 else (lambda step, values: None)

    def log_metrics(step: int, values: dict[str, float]) -> None:
        write_metrics(step, values)
        # An evaluation, unlike what the loop logs of the training itself, has the primary metric.
        if after_evaluation is not None and group.rank == 0 and stage.metric in values:
            after_evaluation(step, values)

    try:
        report = fit(
            system,
            loader,
            fit_config,
            device=device,
            evaluate=lambda candidate: run_evaluation(candidate, "val").metrics,
            metric=stage.metric,
            mode=stage.mode,
            hooks=Hooks(wrap=_wrapper(group, device), log=log_metrics, checkpoints=work / "checkpoints", group=group),
        )
    finally:
        loader.close()
    system.load_state_dict(report.weights, strict=False)
    final = run_evaluation(system, stage.split)
    if group.rank == 0:
        result = work / "result"
        result.mkdir(parents=True, exist_ok=True)
        save_model(
            result / "model",
            report.weights,
            stage=job.stage,
            dataset=job.dataset,
            config=config.model_dump(mode="json"),
            classes=tuple(job.classes),
            decoder=loader.decoder,
        )
        final.predictions.save(result / "predictions.npz")
        metrics = {**final.metrics, "train/steps": float(report.steps)}
        (work / "fit.json").write_text(json.dumps({"steps": report.steps, "resumed_from": report.resumed_from}))
        # Last and by a rename: where it exists, the fit is over.
        (result / ".metrics.tmp").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
        os.replace(result / ".metrics.tmp", result / "metrics.json")
    group.barrier()


@contextlib.contextmanager
def _log_to_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("training")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:  # one process may train several times
        logger.removeHandler(handler)
        handler.close()


def _train_loader(job: FitJob, data: DataConfig, config: FitConfig, group: Group, *, pin: bool) -> ClipLoader:
    if data.batch_size % config.accumulate:
        raise ValueError(f"data.batch_size {data.batch_size} is not divisible by fit.accumulate {config.accumulate}")
    micro = data.model_copy(update={"batch_size": data.batch_size // config.accumulate})
    return open_loader(
        Path(job.shards),
        micro,
        split="train",
        train=True,
        seed=config.seed,
        rank=group.rank,
        world=group.world,
        pin=pin,
        allow_decoder_change=job.allow_decoder_change,
    )


def _group() -> Group:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Group(rank=dist.get_rank(), world=dist.get_world_size())
    return Group()


def _device() -> torch.device:
    if torch.cuda.is_available():
        with contextlib.suppress(ImportError, RuntimeError):
            from ray.train.torch import get_device

            device: torch.device = get_device()
            return device
        return torch.device("cuda")
    return torch.device("cpu")


def _wrapper(group: Group, device: torch.device) -> Callable[[System], nn.Module]:
    def wrap(system: System) -> nn.Module:
        if group.world == 1:
            return system
        from training.layers.sync_batchnorm import convert_sync_batchnorm

        convert_sync_batchnorm(system)
        return nn.parallel.DistributedDataParallel(
            system,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # synchronised statistics are equal already
            find_unused_parameters=system.unused_parameters,
        )

    return wrap


def _logger(job: FitJob, work: Path, steps: int) -> Callable[[int, dict[str, float]], None]:
    run = None
    if job.tracking is not None:
        from training.core.tracking import attach_run

        run = attach_run(job.tracking["uri"], job.tracking["run_id"])

    def write(step: int, values: dict[str, float]) -> None:
        if run is not None:
            run.log_metrics(values, step=step)
        keys = ("train/loss", "train/reward", "train/clips_per_s", "val/top1")
        write_progress(work / "progress.json", step, steps, {key: values[key] for key in keys if key in values})

    return write
