"""A fitted pipeline: saved without pickle, checked by checksums, and ready to name what happens in a video.

pipeline.yaml        the document; resolved.yaml: the same with nothing left open
labels.json          class names, in index order
preprocessing.json   model → how clips are sampled, cropped and normalised
models/<step>/       model.safetensors and model.json of each learner
states/<step>/       what other steps learned (weights of an ensemble)
metrics.json         figures of the evaluators
card.md              for people
checksums.json       sha256 of every file above
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.files import sha256_of
from data_specs.schema import digest
from infra.settings import Settings
from training.autovideo.document import Document
from training.autovideo.pipeline import PipelineRun
from training.autovideo.predicting import predict as predict_splits
from training.autovideo.shard_sets import open_shards
from training.autovideo.values import Context, Model, Predictions, Value
from training.core.checkpoint import CheckpointError, model_digest, read_model_info, replace_folder
from training.core.config import ConfigError

FORMAT = "autovideo/v1"


class SavedPipelineError(CheckpointError):
    """A saved pipeline cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Answer:
    """What a pipeline says of one video."""

    video: str
    classes: tuple[str, ...]
    """Names, best first."""
    scores: tuple[float, ...]

    @property
    def label(self) -> str:
        """The best class."""
        return self.classes[0]


class FittedPipeline:
    """A document, its models, and the step that answers: a learner, or an ensembler over several."""

    def __init__(
        self,
        document: Document,
        models: Mapping[str, Path],
        states: Mapping[str, Path],
        metrics: Mapping[str, float],
        *,
        device: str = "cpu",
        run: PipelineRun | None = None,
    ) -> None:
        self.document = document
        self.metrics = dict(metrics)
        self.device = device
        self._models, self._states = dict(models), dict(states)
        self._run = run
        self._classifiers: dict[str, Any] = {}
        self.answers = _answering(document, models)
        """Id of the step whose scores are the pipeline's."""

    @classmethod
    def of(cls, run: PipelineRun) -> "FittedPipeline":
        """Return what a run has fitted.

        Raises:
            ConfigError: no step made a model.
        """
        models: dict[str, Path] = {}
        states: dict[str, Path] = {}
        for name, ran in run.steps.items():
            for value in ran.values.values():
                if isinstance(value, Model):
                    models[name] = value.folder
            folder = run.workspace / "steps" / name / (ran.key or "impure")[:16] / "state"
            if folder.is_dir() and any(folder.iterdir()):
                states[name] = folder
        return cls(run.document, models, states, run.metrics(), run=run)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(read_model_info(next(iter(self._models.values())))["classes"])

    # --- predicting ---------------------------------------------------------------------------

    def scores(self, source: Path | bytes | str) -> NDArray[np.float32]:
        """Return the score of each class (K,) for one video, given as path or bytes.

        Raises:
            Exception: what the decoder raises for a file that it cannot read.
        """
        from training.core.serving_inputs import as_source

        item = as_source(source)
        if self.answers in self._models:
            return self._score(self.answers, item)
        with tempfile.TemporaryDirectory() as temporary:
            return self._ensemble(item, Path(temporary))

    def _score(self, step: str, source: Path | bytes) -> NDArray[np.float32]:
        from training.core.serving import VideoClassifier

        if step not in self._classifiers:
            self._classifiers[step] = VideoClassifier(self._models[step], self.device)
        scores: NDArray[np.float32] = self._classifiers[step].scores(source)
        return scores

    def _ensemble(self, source: Path | bytes, work: Path) -> NDArray[np.float32]:
        """Run the steps between the models and the answer on the scores of one video."""
        checked = self.document.checked()
        done: dict[str, dict[str, Value]] = {}
        for name in checked.graph.upstream(self.answers):
            bound = checked.steps[name]
            if name in self._models or bound.primitive.kind in ("reader", "decoder", "transform", "augment", "combine"):
                continue
            inputs: dict[str, Any] = {}
            for port, edges in checked.graph.inputs(name).items():
                found = [done[edge.source][edge.output] for edge in edges if edge.source in done]
                if models := [edge.source for edge in edges if edge.source in self._models]:
                    found = [self._as_predictions(step, source, work) for step in models]
                if found:
                    inputs[port] = tuple(found) if bound.primitive.inputs[port].several else found[0]
            if bound.primitive.kind == "extractor":
                given = next((value for value in inputs.values() if isinstance(value, Predictions)), None)
                if given is not None:
                    done[name] = {"predictions": given}
                continue
            item = bound.make()
            state = item.load(self._states[name]) if name in self._states else None
            done[name] = item.produce(inputs, state, self._context(name, work))
        (answer,) = done[self.answers].values()
        assert isinstance(answer, Predictions)
        from training.core.evaluate import Predictions as Arrays

        return np.asarray(Arrays.load(answer.files["test"]).scores[0], dtype=np.float32)

    def _as_predictions(self, step: str, source: Path | bytes, work: Path) -> Predictions:
        from training.core.evaluate import Predictions as Arrays

        path = work / f"{step}.npz"
        scores = self._score(step, source)[None]
        Arrays(np.asarray(["0"]), np.zeros(1, dtype=np.int64), scores, {}, {}, self.classes).save(path)
        return Predictions({"test": path}, self.classes, {"test": "one"}, digest({"step": step}))

    def _context(self, step: str, work: Path) -> Context:
        settings = Settings(root=work)
        return Context(
            step=step,
            seed=self.document.seed,
            work=work / step,
            settings=settings,
            project=settings,
            data=settings,
            document=self.document,
        )

    def predict(self, source: Path | bytes | str, top: int = 5) -> Answer:
        """Name what happens in one video, given as path or bytes.

        Raises:
            Exception: what the decoder raises for a file that it cannot read.
        """
        from training.core.serving_inputs import name_of

        scores = self.scores(source)
        order = np.argsort(-scores, kind="stable")[: max(1, top)]
        classes = self.classes
        return Answer(name_of(source), tuple(classes[i] for i in order), tuple(float(scores[i]) for i in order))

    def predict_many(self, sources: Sequence[Path | bytes | str], top: int = 5) -> list[Answer]:
        """Name what happens in several videos."""
        return [self.predict(source, top) for source in sources]

    def produce(self, shards: Path | None = None, *, split: str = "test") -> Predictions:
        """Return the scores of a split.

        Args:
            shards: folder of shards; None: those that the pipeline was fitted on. A loaded pipeline must be given some.
            split: train, val or test.

        Raises:
            ConfigError: no shards given, or they lack the split; a pipeline that answers by an ensemble, whose splits
                are outputs of its own steps.
        """
        if self.answers not in self._models:
            raise ConfigError(
                f"{self.document.name}: step {self.answers!r} joins several models; its scores are an output of the "
                f"run (`run.value({self.answers!r})`)"
            )
        folder = self._models[self.answers]
        model = Model(folder, "", model_digest(folder), None)
        if shards is not None:
            model = Model(folder, "", model.digest, open_shards(shards, shards.name))
        elif self._run is not None:
            found = self._run.value(self.answers)
            assert isinstance(found, Model)
            model = found
        work = self._run.workspace if self._run is not None else Path(tempfile.mkdtemp(prefix="autovideo-"))
        settings = Settings(root=work, device=self.device)
        context = Context("produce", self.document.seed, work, settings, settings, settings, self.document)
        return predict_splits(model, None, (split,), None, context)

    # --- saving -------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write everything that predicting needs, atomically; an older pipeline in the folder is replaced.

        Raises:
            SavedPipelineError: the folder exists and holds something else.
        """
        folder = folder.absolute()
        check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self._write(temporary)
            replace_folder(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write(self, temporary: Path) -> None:
        """Write all files into an empty folder, the checksums last."""
        temporary.chmod(0o755)
        for kind, sources in (("models", self._models), ("states", self._states)):
            for name, source in sources.items():
                shutil.copytree(source, temporary / kind / name)
        texts = {
            "pipeline.yaml": self.document.to_yaml(),
            "resolved.yaml": self.document.resolved().to_yaml(),
            "labels.json": json.dumps({"classes": list(self.classes)}, indent=1, ensure_ascii=False),
            "preprocessing.json": json.dumps(self._preprocessing(), indent=1, sort_keys=True),
            "metrics.json": json.dumps(self.metrics, indent=1, sort_keys=True),
            "card.md": self.card(),
        }
        for name, text in texts.items():
            (temporary / name).write_text(text if text.endswith("\n") else text + "\n")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files}
        checks = {"format": FORMAT, "digest": self.document.digest(), "files": sums}
        (temporary / "checksums.json").write_text(json.dumps(checks, indent=1, sort_keys=True) + "\n")

    def _preprocessing(self) -> dict[str, Any]:
        return {name: read_model_info(folder)["config"]["data"] for name, folder in self._models.items()}

    def card(self) -> str:
        """Return a page about the pipeline for people, in Markdown."""
        lines = [f"# {self.document.name}", "", f"{len(self.classes)} classes: {', '.join(self.classes)}", ""]
        lines += ["| step | primitive |", "|---|---|"]
        lines += [f"| {name} | {bound.primitive.id} |" for name, bound in self.document.checked().steps.items()]
        if self.metrics:
            lines += ["", "| figure | value |", "|---|---|"]
            lines += [f"| {name} | {value:.4g} |" for name, value in sorted(self.metrics.items())]
        lines += ["", f"Answers come from step `{self.answers}`. Digest of the pipeline: `{self.document.digest()}`."]
        return "\n".join(lines) + "\n"

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "FittedPipeline":
        """Read a saved pipeline, after comparing every file with its checksum.

        Raises:
            SavedPipelineError: no such pipeline, another format, or a file that is missing, new or changed.
        """
        folder = folder.absolute()  # the models are read later, maybe from another working directory
        checks = _checks(folder)
        document = Document.from_file(folder / "pipeline.yaml")
        if document.digest() != checks["digest"]:
            raise SavedPipelineError(
                f"{folder}: the installed primitives give this pipeline another digest than it was saved with: "
                "compare the versions in resolved.yaml with `fovea primitives list`"
            )
        models, states = (_folders(folder / kind, checks["files"]) for kind in ("models", "states"))
        metrics = json.loads((folder / "metrics.json").read_text())
        return cls(document, models, states, metrics, device=device)


def check_place(folder: Path) -> None:
    """Check that a pipeline may be saved as this folder: there is none, it is empty, or an older pipeline is in it.

    Raises:
        SavedPipelineError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        _listed(folder)
    except SavedPipelineError:
        raise SavedPipelineError(f"{folder} exists, and is no saved pipeline: choose another name") from None


def _listed(folder: Path) -> dict[str, Any]:
    """Read checksums.json, without comparing anything."""
    path = folder / "checksums.json"
    if not path.is_file():
        raise SavedPipelineError(f"{folder} is no saved pipeline: it has no checksums.json")
    try:
        checks: Any = json.loads(path.read_text())
    except ValueError as error:
        raise SavedPipelineError(f"{path} cannot be read: {error}") from error
    known = checks.get("format") if isinstance(checks, dict) else None
    if known != FORMAT:
        raise SavedPipelineError(f"{folder}: format {known!r}, this version reads {FORMAT!r}")
    if not isinstance(checks.get("files"), dict) or not isinstance(checks.get("digest"), str):
        raise SavedPipelineError(f"{path} lacks `files` or `digest`")
    return dict(checks)


def _folders(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Return the folders of steps that have files, by the step's name."""
    names = sorted({name.split("/")[1] for name in files if name.startswith(f"{folder.name}/")})
    return {name: folder / name for name in names}


def _checks(folder: Path) -> dict[str, Any]:
    checks = _listed(folder)
    present = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()} - {"checksums.json"}
    for name in sorted(present ^ set(checks["files"])):
        raise SavedPipelineError(
            f"{folder}: {name} is {'not listed in checksums.json' if name in present else 'missing'}"
        )
    for name, expected in checks["files"].items():
        if sha256_of(folder / name) != expected:
            raise SavedPipelineError(f"{folder}: {name} was changed after the pipeline was saved")
    return checks


def _answering(document: Document, models: Mapping[str, Path]) -> str:
    """Return the step whose scores are the pipeline's: an output of the document, else the last that there is."""
    checked = document.checked()
    ensembles = [name for name, step in checked.steps.items() if step.primitive.kind == "ensembler"]
    named = [str(output).split(".")[0] for output in checked.graph.outputs]
    for candidates in (ensembles, list(models)):
        for name in reversed(named):
            if name in candidates:
                return name
    if ensembles:
        return ensembles[-1]
    if not models:
        raise ConfigError(f"pipeline {document.name!r} has no learner: there is nothing to predict with")
    return list(models)[-1]


__all__ = ["Answer", "FittedPipeline", "SavedPipelineError"]
