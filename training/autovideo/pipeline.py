"""Pipelines as objects: from a document or a dict to a fitted pipeline that is saved, loaded and predicts.

from training.autovideo.fitted import FittedPipeline
from training.autovideo.pipeline import Pipeline

fitted = Pipeline.from_yaml("pipeline.yaml").fit()
fitted.save(Path("my_model"))
FittedPipeline.load(Path("my_model")).predict("clip.mp4")
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_specs.schema import digest
from infra.locks import stage_lock
from infra.settings import Settings
from training.autovideo.document import Bound, Checked, Document
from training.autovideo.plain import hint
from training.autovideo.primitive import Input
from training.autovideo.records import read_values, value_digest, write_values
from training.autovideo.resolve import step_key
from training.autovideo.values import Context, Metrics, Predictions, Value
from training.core.config import ConfigError
from training.core.failures import StageFailed
from training.core.pages import write_text
from training.core.stage import CODE_VERSION

if TYPE_CHECKING:
    from training.autovideo.fitted import FittedPipeline

log = logging.getLogger(__name__)

Executor = Literal["local", "ray"]


class StepFailed(StageFailed):
    """A step of a pipeline failed; the message names step, primitive and cause, `__cause__` is the original error."""


@dataclass(frozen=True)
class Ran:
    """What became of one step."""

    step: str
    values: Mapping[str, Value]
    cached: bool
    seconds: float
    key: str | None


@dataclass(frozen=True)
class PipelineRun:
    """A pipeline that has run."""

    document: Document
    steps: Mapping[str, Ran]
    workspace: Path

    def value(self, reference: str) -> Value:
        """Return the value of an output, `net.model`, or of a step with one output.

        Raises:
            ConfigError: no such step or output.
        """
        name, _, port = reference.partition(".")
        if name not in self.steps:
            raise ConfigError(f"no step is called {name!r}; there are {', '.join(self.steps)}")
        values = self.steps[name].values
        if not port and len(values) == 1:
            return next(iter(values.values()))
        if port not in values:
            raise ConfigError(f"step {name!r} has the outputs {', '.join(values)}, not {port!r}")
        return values[port]

    def outputs(self) -> dict[str, Value]:
        """Return the outputs that the document names."""
        return {str(name): self.value(str(name)) for name in self.document.checked().graph.outputs}

    def metrics(self) -> dict[str, float]:
        """Return the figures of all steps that make some; those of several models have the step before their name."""
        found = {name: value.values for name, ran in self.steps.items() for value in ran.values.values()
                 if isinstance(value, Metrics)}  # fmt: skip
        keys = [key for values in found.values() for key in values]
        return {
            (key if keys.count(key) == 1 else f"{name}.{key}"): number
            for name, values in found.items()
            for key, number in values.items()
        }


class Pipeline:
    """A pipeline that can be checked and run."""

    def __init__(self, document: Document) -> None:
        self.document = document

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Pipeline":
        """Return the pipeline of plain values, which stay as they are.

        Raises:
            ConfigError: everything that is wrong with it.
        """
        return cls(Document.from_dict(values))

    @classmethod
    def from_yaml(cls, path: Path | str) -> "Pipeline":
        """Return the pipeline of a YAML file; errors as `from_dict`."""
        return cls(Document.from_file(path))

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as plain values."""
        return self.document.to_dict()

    def to_yaml(self) -> str:
        """Return YAML that gives the same pipeline."""
        return self.document.to_yaml()

    def validate(self) -> list[str]:
        """Return warnings: steps that no output needs, variables that nothing refers to.

        Raises:
            ConfigError: the pipeline cannot run.
        """
        return list(self.document.checked().warnings)

    def run(
        self,
        *,
        settings: Settings | None = None,
        dataset: str = "",
        resume: bool = True,
        executor: Executor = "local",
        only: str | None = None,
    ) -> PipelineRun:
        """Run all steps, in order; those whose result is known are not run again.

        Args:
            settings: of the project; None: of the environment.
            dataset: data set that `reader/dataset` reads where it names none.
            resume: False forgets what earlier runs of this pipeline left.
            executor: `local` trains in this process, `ray` in Ray's.
            only: a step; run no more than what it needs.

        Raises:
            ConfigError: the pipeline cannot run, or a step says what is wrong with its settings.
            StepFailed: a step failed in another way; its traceback is kept.
        """
        checked = self.document.checked()
        project = (settings or Settings()).model_copy()
        if only is not None and only not in checked.steps:
            known = ", ".join(checked.steps)
            raise ConfigError(f"no step is called {only!r}{hint(only, checked.steps)}; there are {known}")
        workspace = project.root.absolute() / "pipelines" / self.document.name
        own = workspace_settings(project, workspace, executor)
        with stage_lock(workspace / ".lock"):
            if not resume:
                _empty(workspace)
            _write(workspace / "pipeline.yaml", self.to_yaml())
            _write(workspace / "resolved.yaml", self.document.resolved().to_yaml())
            wanted = None if only is None else set(checked.graph.upstream(only))
            ran: dict[str, Ran] = {}
            for name in checked.graph.order():
                if wanted is None or name in wanted:
                    ran[name] = self._step(checked, name, ran, own, project, dataset)
            run = PipelineRun(self.document, ran, workspace)
            if wanted is None:
                from training.autovideo.run_record import log_run

                log_run(run, project)
        return run

    def _step(
        self,
        checked: Checked,
        name: str,
        before: Mapping[str, Ran],
        own: Settings,
        project: Settings,
        dataset: str,
    ) -> Ran:
        bound = checked.steps[name]
        inputs = _inputs(checked, name, before)
        key = _key(bound, inputs, self.document.seed)
        folder = own.root / "steps" / name
        context = Context(
            step=name,
            seed=self.document.seed,
            work=folder / (key or "impure")[:16],
            settings=own,
            project=project,
            data=_data_settings(project),
            document=self.document,
            dataset=dataset,
        )
        started = time.monotonic()
        if key is not None and (known := read_values(context.work / "values.json")) is not None:
            return Ran(name, known, True, 0.0, key)
        primitive = bound.make()
        log.info("step %s: %s", name, bound.primitive.id)
        try:
            state = primitive.fit(inputs, context)
            state_folder = context.work / "state"
            shutil.rmtree(state_folder, ignore_errors=True)
            state_folder.mkdir(parents=True)
            primitive.save(state, state_folder)
            values = primitive.produce(inputs, state, context)
        except ConfigError as error:
            where = f"step {name!r}"
            if where in str(error):
                raise
            raise ConfigError(f"{where} ({bound.primitive.id}): {error}") from error
        except Exception as error:
            log.exception("step %s", name)
            raise StepFailed(f"step {name!r} ({bound.primitive.id}) failed: {type(error).__name__}: {error}") from error
        if set(values) != set(bound.primitive.outputs):
            raise StepFailed(
                f"step {name!r}: {bound.primitive.id} made {sorted(values)}, "
                f"and declares {sorted(bound.primitive.outputs)}"
            )
        write_values(context.work / "values.json", values)
        return Ran(name, values, False, time.monotonic() - started, key)

    def fit(
        self,
        data: str | None = None,
        *,
        resume: bool = True,
        executor: Executor = "local",
        settings: Settings | None = None,
    ) -> "FittedPipeline":
        """Run the pipeline, and return what predicts.

        Args:
            data: a data set of this project, or a folder: replaces what the pipeline's only reader reads.
            resume: see `run`.
            executor: see `run`.
            settings: see `run`.

        Raises:
            ConfigError: see `run`; or nothing in the pipeline is a model.
        """
        from training.autovideo.fitted import FittedPipeline

        pipeline, dataset = (self, "") if data is None else self.on(data)
        run = pipeline.run(settings=settings, dataset=dataset, resume=resume, executor=executor)
        return FittedPipeline.of(run)

    def fit_produce(
        self,
        data: str | None = None,
        *,
        split: str = "test",
        resume: bool = True,
        executor: Executor = "local",
        settings: Settings | None = None,
    ) -> Predictions:
        """Run the pipeline and return its scores on a split."""
        return self.fit(data, resume=resume, executor=executor, settings=settings).produce(split=split)

    def on(self, data: str) -> "tuple[Pipeline, str]":
        """Return the pipeline with other data, and the name of the data set if it is one of the project.

        Raises:
            ConfigError: the pipeline has no reader or several, or one that reads no folder.
        """
        values = self.to_dict()
        readers = [step for step in values["steps"] if step["use"].startswith("reader/")]
        if len(readers) != 1:
            raise ConfigError(
                f"pipeline {self.document.name!r} has {len(readers)} readers: say in the document what they read"
            )
        (reader,) = readers
        if reader["use"] == "reader/dataset":
            reader["with"] = {**reader.get("with", {}), "name": data}
            return Pipeline.from_dict(values), data
        reader["with"] = {**reader.get("with", {}), "root": data}
        return Pipeline.from_dict(values), ""


def _inputs(checked: Checked, name: str, before: Mapping[str, Ran]) -> dict[str, Any]:
    declared: Mapping[str, Input] = checked.steps[name].primitive.inputs
    inputs: dict[str, Any] = {}
    for port, edges in checked.graph.inputs(name).items():
        found = tuple(before[edge.source].values[edge.output] for edge in edges)
        inputs[port] = found if declared[port].several else found[0]
    return inputs


def _key(bound: Bound, inputs: Mapping[str, Any], seed: int) -> str | None:
    """Return the cache key of a step; None where it must always run."""
    digests = {}
    for port, value in inputs.items():
        several = value if isinstance(value, tuple) else (value,)
        digests[port] = digest([value_digest(item) for item in several])
    return step_key(bound, digests, seed, code_version=str(CODE_VERSION["fit"]))


def workspace_settings(project: Settings, workspace: Path, executor: Executor) -> Settings:
    """Return the settings of a workspace: its own root, the project's tracking store."""
    workspace.mkdir(parents=True, exist_ok=True)
    workers = 0 if executor == "local" else max(1, project.train_workers)
    uri = project.tracking_uri
    return project.model_copy(update={"root": workspace, "mlflow_tracking_uri": uri, "train_workers": workers})


def _data_settings(project: Settings) -> Settings:
    """Return the settings of the place where data sets lie that pipelines made."""
    root = project.root.absolute() / "pipelines" / ".data"
    (root / "params").mkdir(parents=True, exist_ok=True)
    if not (root / "dvc.yaml").exists():
        _write(root / "dvc.yaml", "stages: {}\n")
    return project.model_copy(update={"root": root})


def _empty(workspace: Path) -> None:
    """Remove what a workspace holds, but for locks: another process may wait for them."""
    for path in workspace.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != ".lock" and path.name != ".lock":
            path.unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def as_json_text(run: PipelineRun) -> str:
    """Return what became of the steps, as the command prints it."""
    rows = [
        {"step": ran.step, "cached": ran.cached, "seconds": round(ran.seconds, 2), "key": ran.key,
         "outputs": {name: str(value.port) for name, value in ran.values.items()}}
        for ran in run.steps.values()
    ]  # fmt: skip
    return json.dumps(
        {"name": run.document.name, "digest": run.document.digest(), "steps": rows, "metrics": run.metrics()}
    )
