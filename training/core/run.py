"""`run_stage`: one stage instance from its params section to its outputs.

The process boundary of the project: DVC, Prefect, CI and people all call
`python -m training run <stage>@<dataset>`. Work in progress lies in `.work/runs/`, never in an output (D2);
one writer per instance (D3); outputs appear by renaming when everything else has succeeded.
"""

import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_specs.files import sha256_of
from data_specs.schema import ShardIndex, digest, read_index
from infra.locks import stage_lock
from infra.settings import Settings
from training.core.checkpoint import model_digest, replace_folder
from training.core.config import ConfigError, StageConfig, apply_overrides, load_section, parse_yaml, validate
from training.core.data import open_loader, resolve_decoder
from training.core.evaluate import Evaluation, evaluate_shards, measure_latency
from training.core.failures import StageFailed
from training.core.ray_runner import FitJob, run_fit, source_digest
from training.core.stage import CODE_VERSION, Report, Stage, StageInputs, StagePaths, StageRef, paths_of
from training.core.system import System
from training.core.trials import Search, SearchConfig
from training.registry import all_stages, family_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolved:
    """A stage instance with its config and paths, checked, before anything runs."""

    ref: StageRef
    stage: Stage
    config: StageConfig
    paths: StagePaths
    decoder_asked: str
    """As the params file says, maybe `auto`; the config has the rung that this machine resolved it to."""
    overridden: bool


def resolve(ref: StageRef, settings: Settings, overrides: list[str] | None = None) -> Resolved:
    """Read and validate an instance's config.

    Raises:
        ConfigError: unknown stage, items that are not in its matrix, or a section that is not valid.
        FileNotFoundError: a search that the config takes a value from has not run.
    """
    stages = all_stages()
    if ref.stage not in stages:
        raise ConfigError(f"unknown stage {ref.stage!r}; known: {', '.join(stages)}")
    stage = stages[ref.stage]
    known = stage.instances(ref.dataset, settings.root)
    if ref not in known:
        raise ConfigError(f"{ref} is not an instance of {stage.name}; there are: {', '.join(map(str, known))}")
    paths = paths_of(stage, ref, settings, stages)
    values = load_section(paths.params, stage.name)
    values |= {name: load_section(paths.params, section) for name, section in stage.shared.items()}
    values |= dict(zip(stage.matrix, ref.items, strict=True))
    values |= {name: _found(stage, paths, source) for name, source in stage.found.items()}
    values = apply_overrides(values, overrides or [])
    config = validate(stage.config, values, f"{paths.params}: section {stage.name!r}")
    asked = config.data.decoder
    if asked == "auto":
        # Resolved once and recorded: which rung made the pixels belongs to the result (D8).
        data = config.data.model_copy(update={"decoder": resolve_decoder("auto")})
        config = config.model_copy(update={"data": data})
    return Resolved(ref, stage, config, paths, asked, bool(overrides))


def _found(stage: Stage, paths: StagePaths, source: str) -> Any:
    """Return what a search found: the content of the leaf that an entry of `Stage.found` names."""
    key, _, leaf = source.partition("/")
    path = paths.upstream.get(key, Path()) / leaf
    if path not in paths.leaves.get(key, ()):
        known = [f"{name}/{file.name}" for name, files in paths.leaves.items() for file in files]
        raise ConfigError(f"stage {stage.name!r}: found {source!r} is none of the leaves of its upstreams: {known}")
    return parse_yaml(_present(path, key).read_text())


def run_stage(ref: StageRef, settings: Settings, overrides: list[str] | None = None) -> Path:
    """Run one instance and return the folder of its outputs.

    With overrides the outputs go to `scratch/` and the run is tagged: they can never pass for a DVC output.

    Raises:
        ConfigError: see `resolve`.
        FileNotFoundError: shards or an upstream model are missing.
    """
    resolved = resolve(ref, settings, overrides)
    index = read_index(resolved.paths.shards)
    upstream = _upstream_digests(resolved.paths)
    config = resolved.config.model_dump(mode="json")
    # Without the rung: a machine with another one shall find the checkpoint, and refuse it or not (D8).
    asked = {**config, "data": {**config["data"], "decoder": resolved.decoder_asked}}
    identity = {
        "stage": str(ref),
        "config": asked,
        "code_version": CODE_VERSION[resolved.stage.kind],
        "shards": sha256_of(resolved.paths.shards / "index.json"),
        "upstream": upstream,
    }
    input_digest = digest(identity)[:16]
    output = (
        settings.root.absolute() / "scratch" / ref.dataset / ref.folder if resolved.overridden else resolved.paths.run
    )
    with stage_lock(settings.work / f"{ref}.lock"):
        work = settings.work.absolute() / "runs" / f"{ref.dataset}-{ref.slug}" / input_digest
        work.mkdir(parents=True, exist_ok=True)
        started = time.time()
        run = _start_tracking(resolved, settings, asked, index, upstream, input_digest)
        try:
            if resolved.stage.kind == "fit":
                _fit(resolved, settings, _job(resolved, settings, config, index, work, input_digest, run))
            elif resolved.stage.kind == "evaluate":
                _evaluate(resolved, settings, index, work)
            elif resolved.stage.kind == "report":
                _report(resolved, index, work / "result")
            else:
                _search(resolved, settings, _job(resolved, settings, config, index, work, input_digest, run))
            _check_leaves(resolved, work / "result")
        except BaseException as error:
            _log_workers(run, work)
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        result = work / "result"
        (result / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        _log_workers(run, work)
        _finish_tracking(run, resolved, result)
        _publish(result, output)
        info = {
            "run_id": run.run_id,
            "tracking_uri": settings.tracking_uri,
            "input_digest": input_digest,
            "started": started,
            "seconds": time.time() - started,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "overridden": resolved.overridden,
            "fit": json.loads(fit.read_text()) if (fit := work / "fit.json").exists() else None,
        }
        (output / "run.json").write_text(json.dumps(info, indent=1) + "\n")
        shutil.rmtree(work)
    return output


def _upstream_digests(paths: StagePaths) -> dict[str, str]:
    digests = {}
    for name, folder in paths.upstream.items():
        if name in paths.leaves:
            digests[name] = _leaves_digest([_present(path, name) for path in paths.leaves[name]])
        else:
            digests[name] = model_digest(_present(folder, name))
    for name, folders in paths.results.items():
        digests[name] = digest([sha256_of(_present(folder / "metrics.json", name)) for folder in folders])
    return digests


def _leaves_digest(files: Sequence[Path]) -> str:
    """Return the identity of what a search left: sha256 over its files' names and checksums."""
    return digest({path.name: sha256_of(path) for path in files})


def _present(path: Path, upstream: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the upstream stage {upstream!r} first (`dvc repro` does)")
    return path


def _job(
    resolved: Resolved,
    settings: Settings,
    config: dict[str, Any],
    index: ShardIndex,
    work: Path,
    input_digest: str,
    run: Any,
) -> FitJob:
    return FitJob(
        stage=resolved.stage.name,
        dataset=resolved.ref.dataset,
        name=f"{resolved.ref.dataset}-{resolved.ref.slug}-{input_digest}",
        config=config,
        classes=list(index.classes),
        root=str(settings.root.absolute()),
        shards=str(resolved.paths.shards),
        upstream={name: str(path) for name, path in resolved.paths.upstream.items()},
        work=str(work),
        tracking={"uri": settings.tracking_uri, "run_id": run.run_id},
        source_digest=source_digest(),
        cpus=settings.train_cpus_per_worker,
        allow_decoder_change=settings.allow_decoder_change,
    )


def _check_leaves(resolved: Resolved, result: Path) -> None:
    for leaf in resolved.stage.leaves:
        if not (result / leaf).is_file():
            raise StageFailed(
                f"{resolved.ref} made no {leaf!r}, which {resolved.stage.name} says it leaves (Stage.leaves)"
            )


def _fit(resolved: Resolved, settings: Settings, job: FitJob) -> None:
    if (Path(job.work) / "result" / "metrics.json").exists():
        log.info("%s: the fit of these inputs has already finished; publishing its result", resolved.ref)
        return
    run_fit(job, settings)


def _search(resolved: Resolved, settings: Settings, job: FitJob) -> None:
    from training.core.search import run_search
    from training.core.search_run import write_result

    stage, config = resolved.stage, resolved.config
    if not isinstance(config, SearchConfig):
        raise ConfigError(
            f"config of search stage {stage.name!r} must be a SearchConfig, it is {type(config).__name__}"
        )
    search: Search = stage.build(
        StageInputs(
            config,
            tuple(job.classes),
            resolved.paths.upstream,
            settings.root.absolute(),
            shards=resolved.paths.shards,
        )
    )
    scored, work = stage.scorer is not None, Path(job.work)
    outcomes = run_search(
        search, job, settings, metric=stage.metric, mode=stage.mode, stopping=config.stopping, scored=scored
    )
    write_result(work / "result", work, search, outcomes, stage.metric, stage.mode, scored=scored, leaves=stage.leaves)


def _evaluate(resolved: Resolved, settings: Settings, index: ShardIndex, work: Path) -> None:
    system = resolved.stage.build(
        StageInputs(config=resolved.config, classes=index.classes, upstream=resolved.paths.upstream)
    )
    split = resolved.stage.split
    evaluation = evaluate_shards(system, resolved.paths.shards, resolved.config.data, split=split, settings=settings)
    metrics = evaluation.metrics | _latency(system, resolved)
    Evaluation(metrics, evaluation.predictions).save(work / "result")


def _report(resolved: Resolved, index: ShardIndex, result: Path) -> None:
    result.mkdir(parents=True, exist_ok=True)
    report: Report = resolved.stage.build(
        StageInputs(
            config=resolved.config,
            classes=index.classes,
            upstream={},
            results=resolved.paths.results,
            shards=resolved.paths.shards,
        )
    )
    metrics = report.write(result)
    (result / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def _latency(system: System, resolved: Resolved) -> dict[str, float]:
    """Time the main model on the split's first clip, batch 1; only figures of the same hardware compare.

    Of a model that finds objects that is the first block of frames of a video, and the time per frame is told, too.
    """
    split = resolved.stage.split
    data = resolved.config.data.model_copy(update={"batch_size": 1})
    loader = open_loader(resolved.paths.shards, data, split=split, train=False, seed=0)
    try:
        clip = next(iter(loader))
    finally:
        loader.close()
    times = measure_latency(system, clip)
    latency = {f"{split}/latency_ms_{name}": times[name] for name in ("p50", "p95")}
    if clip.number_BT is not None:
        frames = clip.number_BT.shape[1]
        latency |= {f"{split}/latency_ms_per_frame_{name}": times[name] / frames for name in ("p50", "p95")}
    return latency


def _start_tracking(
    resolved: Resolved,
    settings: Settings,
    config: dict[str, Any],
    index: ShardIndex,
    upstream: dict[str, str],
    input_digest: str,
) -> Any:
    from training.core.tracking import ensure_store, git_facts, start_run

    ensure_store(settings)
    tags = {
        "stage": resolved.stage.name,
        "instance": str(resolved.ref),
        "dataset": resolved.ref.dataset,
        "kind": resolved.stage.kind,
        "data_digest": index.data_digest(),
        "eval_data_digest": index.data_digest(resolved.stage.split),
        "config_digest": digest(resolved.config.model_dump(mode="json")),
        "decoder": resolved.config.data.decoder,
        "input_digest": input_digest,
        "upstream_model_digests": json.dumps(upstream),
        "flow_run_id": os.environ.get("FOVEA_FLOW_RUN_ID", ""),
        "overridden": str(resolved.overridden).lower(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        **git_facts(settings.root),
    }
    return start_run(
        settings,
        experiment=family_of(resolved.stage.name),
        name=str(resolved.ref),
        tags=tags,
        params={"config": config},
        resume_tag=("input_digest", input_digest),
    )


def _log_workers(run: Any, work: Path) -> None:
    """Keep what the workers said (which weights fitted, parameter groups, resumed steps): `work` will be removed."""
    for path in sorted((*work.glob("worker-*.log"), *work.glob("scorer-*.log"))):
        run.log_artifact(path, "logs")


def _finish_tracking(run: Any, resolved: Resolved, result: Path) -> None:
    metrics = json.loads((result / "metrics.json").read_text())
    run.log_metrics(metrics, step=None)
    for path in sorted(path for path in result.iterdir() if path.is_file()):
        run.log_artifact(path)
    if (result / "model").exists():
        run.set_tags({"model_digest": model_digest(result / "model")})
    elif resolved.stage.kind == "search" and resolved.stage.leaves:
        # By this tag lineage finds the run that made what a stage read, also where that was not a model.
        run.set_tags({"model_digest": _leaves_digest([result / leaf for leaf in resolved.stage.leaves])})
    run.finish("FINISHED")
    endings = ("/top1", "/map50", "/num_evaluated", "/num_listed")
    shown = {k: v for k, v in metrics.items() if k.endswith(endings)}
    print(f"{resolved.ref}: " + ", ".join(f"{k} {v:.4g}" for k, v in sorted(shown.items())), file=sys.stderr)


def _publish(result: Path, output: Path) -> None:
    """Move finished files from the work folder into the outputs, each by a rename."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(result.iterdir()):
        if path.is_dir():
            replace_folder(path, output / path.name)
        else:
            os.replace(path, output / path.name)
